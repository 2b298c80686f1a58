"""The deterministic tools: produced files are compiled, read by ruff and tested by pytest, each in a bounded process.

What they run is code that a model wrote. Each tool has a process group of its own with limits on time, memory, processes,
the size of files and output; no key in its environment; TCP is closed to it where the kernel can do that (Landlock 4,
Linux 6.7); and as every worker it may write only into its attempt's folder and the temporary one. It is not a prison:
run what you do not trust at all in a container.
"""

import ctypes
import importlib.util
import json
import os
import re
import resource
import shutil
import signal
import struct
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path, PurePosixPath

import psutil

SUFFIXES = (".py", ".md", ".txt", ".json", ".csv")
MAX_FILES, MAX_FILE_CHARS, MAX_CHARS = 40, 60_000, 200_000
MAX_PROCESSES = 32
MAX_WRITTEN_BYTES = 16 * 2**20  # by a tool, in one file; its output is one
MAX_SHOWN_CHARS = 4_000
MAX_FINDINGS = 60  # of one tool
SECONDS = 60
RULES = "E,F,W,I,B,UP,SIM"
COLUMNS = 100
_RESERVED = {"conftest", "pytest", "_pytest", "pluggy", "ruff", "sitecustomize", "usercustomize", "src", "tests"}
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(\.[a-z]+)?|README\.md")
_COMPILE = """
import json, sys
found = []
for name in sys.argv[1:]:
    try:
        compile(open(name, "rb").read(), name, "exec", dont_inherit=True)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        found.append([name, getattr(error, "lineno", None), f"{type(error).__name__}: {getattr(error, 'msg', error)}"])
print(json.dumps(found))
"""


# -- files a model may produce -----------------------------------------------------------------------------------------


def path_problem(path):
    """Why a produced file cannot be called so, or None."""
    parts = PurePosixPath(path).parts
    if not parts or path.startswith("/") or "\\" in path or path != "/".join(parts) or len(path) > 120 or len(parts) > 6:
        return "is no plain relative path"
    if not all(_NAME.fullmatch(part) for part in parts):
        return "has a part that is no Python name; write letters, digits and _ with one suffix"
    if PurePosixPath(path).suffix not in SUFFIXES:
        return f"is of a kind that is not taken ({', '.join(SUFFIXES)}); settings of tools are the project's"
    first = parts[0].partition(".")[0]
    stem = parts[-1].partition(".")[0]
    if stem == "conftest":
        return "would change how tests run; put fixtures into the test files"
    hiding = {first, stem if parts[0] in ("src", "tests") else first} & sys.stdlib_module_names
    if path.endswith(".py") and (hiding or (len(parts) == 1 and first in _RESERVED)):
        return f"hides the module {min(hiding or {first})!r} that others import"
    return None


def file_problems(files):
    """Everything wrong with a set of produced files, as sentences; `files` is ``[{"path", "content"}]``."""
    paths = [file["path"] for file in files]
    for path in paths:
        problem = path_problem(path)
        if problem:
            yield f"{path[:120]!r} {problem}"
    for path in sorted({path for path in paths if [other.lower() for other in paths].count(path.lower()) > 1}):
        yield f"{path!r} is given twice"
    for path in paths:
        if any(other.startswith(f"{path}/") for other in paths):
            yield f"{path!r} is a file and a folder"
    for file in files:
        if len(file["content"]) > MAX_FILE_CHARS:
            yield f"{file['path']!r} has {len(file['content'])} characters; at most {MAX_FILE_CHARS} are taken"
        if "\0" in file["content"]:
            yield f"{file['path']!r} holds a zero byte"
    total = sum(len(file["content"]) for file in files)
    if len(files) > MAX_FILES or total > MAX_CHARS:
        yield f"{len(files)} files with {total} characters; at most {MAX_FILES} and {MAX_CHARS} are taken"
    if not any(is_test(path) for path in paths):
        yield "there are no tests: write at least one tests/test_*.py"
    if not any(path.endswith(".py") and not is_test(path) for path in paths):
        yield "there is no Python module beside the tests"


def is_test(path):
    """Whether pytest takes a file for tests."""
    name = PurePosixPath(path).name
    return name.startswith("test_") and name.endswith(".py")


def lay_out(files, folder):
    """Write files below a new folder; what cannot be called so was refused before, and is refused again here."""
    folder.mkdir(parents=True)
    for file in files:
        problem = path_problem(file["path"])
        if problem:
            raise ValueError(f"{file['path'][:120]!r} {problem}")
        path = folder / file["path"]
        path.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        with os.fdopen(fd, "w", encoding="utf-8", errors="replace") as out:
            out.write(file["content"])


# -- all of them -------------------------------------------------------------------------------------------------------


def missing_tools(python=None):
    """The names of the tools that are not installed, and the interpreter they are looked for in."""
    chosen = python or sys.executable
    if chosen == sys.executable:
        missing = [name for name in ("ruff", "pytest") if importlib.util.find_spec(name) is None]
    else:
        code = "import importlib.util as u; print(*[n for n in ('ruff', 'pytest') if u.find_spec(n) is None])"
        try:
            asked = subprocess.run([chosen, "-c", code], capture_output=True, text=True, timeout=30)
            missing = asked.stdout.split() if asked.returncode == 0 else ["ruff", "pytest"]
        except (OSError, subprocess.TimeoutExpired):
            missing = ["ruff", "pytest"]
    if "ruff" in missing and shutil.which("ruff"):
        missing.remove("ruff")
    return missing, chosen


def check(files, folder, *, python=None, seconds=SECONDS, memory_mb=1024, rules=RULES, columns=COLUMNS):
    """Run every tool over files laid out below `folder`: ``[{"tool", "passed", "seconds", "summary", "findings"}]``.

    A finding is ``{"tool", "file", "line", "code", "message"}``; a tool that is missing, was ended or said nothing of use
    has not passed, and its finding says so.
    """
    room = _Room(folder, python or sys.executable, seconds, memory_mb)
    missing, chosen = missing_tools(python)
    lay_out(files, room.code)
    names = sorted(file["path"] for file in files if file["path"].endswith(".py"))
    reports = [_compile(room, names)]
    for name, tool in (("ruff", lambda: _ruff(room, rules, columns)), ("pytest", lambda: _pytest(room))):
        if name in missing:
            message = f"{name} is not installed: {chosen} -m pip install {name}"
            reports.append(_report(name, 0.0, "not installed", [_finding(name, None, None, "missing", message)]))
        elif name == "pytest" and not reports[0]["passed"]:
            reports.append(_report(name, 0.0, "not run: the files do not compile", [], passed=False))
        else:
            reports.append(tool())
    return reports


def _report(tool, seconds, summary, findings, passed=None):
    shown = findings[:MAX_FINDINGS]
    if len(findings) > MAX_FINDINGS:
        shown.append(_finding(tool, None, None, "more", f"and {len(findings) - MAX_FINDINGS} more"))
    passed = not findings if passed is None else passed
    return {"tool": tool, "passed": passed, "seconds": round(seconds, 2), "summary": summary, "findings": shown}


def _finding(tool, file, line, code, message):
    return {"tool": tool, "file": file, "line": line, "code": code, "message": message[:MAX_SHOWN_CHARS]}


def _compile(room, names):
    ran = room.run("compile", ["-I", "-S", "-c", _COMPILE, *names])
    try:
        found = json.loads(ran.output)
    except ValueError:
        return _report("compile", ran.seconds, "no result", [_finding("compile", None, None, "ended", ran.complaint)])
    findings = [_finding("compile", name, line, "syntax", message) for name, line, message in found]
    return _report("compile", ran.seconds, f"{len(names) - len(findings)} of {len(names)} files compile", findings)


def _ruff(room, rules, columns):
    options = ["check", "--isolated", "--no-cache", "--output-format", "json", "--select", rules]
    options += ["--line-length", str(columns), "--target-version", "py311", "--exit-zero", "."]
    module = room.python != sys.executable or importlib.util.find_spec("ruff") is not None
    ran = room.run("ruff", ["-I", "-m", "ruff", *options] if module else options, None if module else shutil.which("ruff"))
    try:
        found = json.loads(ran.output)
    except ValueError:
        return _report("ruff", ran.seconds, "no result", [_finding("ruff", None, None, "ended", ran.complaint)])
    findings = [
        _finding("ruff", room.inside(one["filename"]), one["location"]["row"], one["code"] or "syntax", one["message"])
        for one in found
    ]
    return _report("ruff", ran.seconds, f"{len(findings)} findings", findings)


def _pytest(room):
    (room.folder / "pytest.ini").write_text("[pytest]\n")
    options = ["-P", "-m", "pytest", "-q", "--tb=short", "-p", "no:cacheprovider", "-c", "../pytest.ini", "--rootdir", "."]
    options += ["-o", "junit_family=xunit1", "--junitxml", "../pytest.xml", "--noconftest", "."]
    ran = room.run("pytest", options)
    try:
        cases = list(ElementTree.fromstring((room.folder / "pytest.xml").read_bytes()).iter("testcase"))
    except (OSError, ElementTree.ParseError):
        return _report("pytest", ran.seconds, "no result", [_finding("pytest", None, None, "ended", ran.complaint)])
    findings = [finding for case in cases for finding in _of_case(case, room)]
    passed = sum(1 for case in cases if not len(case.findall("*[@message]")))
    if not passed and not findings:
        findings = [_finding("pytest", None, None, "no-tests", "no test was run")]
    if ran.code not in (0, 1) and not findings:
        findings = [_finding("pytest", None, None, "ended", ran.complaint)]
    return _report("pytest", ran.seconds, f"{passed} of {len(cases)} tests passed", findings)


def _of_case(case, room):
    """What one test says: a failure or an error where it happened, or that it was not run."""
    name = f"{case.get('classname', '')}.{case.get('name', '')}".strip(".")
    for kind in ("failure", "error", "skipped"):
        for node in case.findall(kind):
            text = node.text or ""
            told = node.get("message") or text.strip()[-500:]
            places = re.findall(r"^([\w/]+\.py):(\d+):", text, re.MULTILINE)
            file, line = places[-1] if places else (case.get("file"), int(case.get("line") or 0) + 1)
            yield _finding("pytest", file and room.inside(room.code / file), int(line), kind, f"{name}: {told[:1500]}")


# -- one of them -------------------------------------------------------------------------------------------------------


class _Ran:
    def __init__(self, code, output, error, seconds, why):
        self.code, self.output, self.seconds = code, output, seconds
        said = (error or output).strip()[-1000:]
        self.complaint = why or f"it ended with exit code {code}" + (f": {said}" if said else " and said nothing")


class _Room:
    """A folder for the code and, beside it, for what the tools say."""

    def __init__(self, folder, python, seconds, memory_mb):
        self.folder, self.code = folder, folder / "code"
        self.python, self.seconds, self.memory_mb = python, seconds, memory_mb

    def inside(self, path):
        """A path as the code's folder has it."""
        return os.path.relpath(os.path.realpath(path), os.path.realpath(self.code))

    def run(self, name, arguments, program=None):
        out, error = self.folder / f"{name}.out.txt", self.folder / f"{name}.err.txt"
        began, why = time.monotonic(), None
        with open(out, "wb") as to_out, open(error, "wb") as to_error:
            process = subprocess.Popen(
                [program or self.python, *arguments],
                cwd=self.code, env=self._environment(), stdin=subprocess.DEVNULL, stdout=to_out, stderr=to_error,
                start_new_session=True, preexec_fn=_bounds(self.seconds, self.memory_mb),
            )  # fmt: skip
            try:
                why = self._watch(process, began)
            finally:
                _end(process)
        seconds = time.monotonic() - began
        return _Ran(process.returncode, _head(out), _head(error), seconds, why)

    def _watch(self, process, began):
        """Waits for the end of a tool; says why it was ended before."""
        while True:
            try:
                process.wait(0.1)
            except subprocess.TimeoutExpired:
                pass
            else:
                return f"it was ended by signal {-process.returncode}" if process.returncode < 0 else None
            if time.monotonic() - began > self.seconds:
                return f"it was not done after {self.seconds:g} s"
            if len(_below()) > MAX_PROCESSES:
                return f"it started more than {MAX_PROCESSES} processes"

    def _environment(self):
        kept = {name: value for name, value in os.environ.items() if name.startswith("POP_") or name in ("PATH", "LANG")}
        home = self.folder / "home"
        home.mkdir(exist_ok=True)
        paths = os.pathsep.join([str(self.code), str(self.code / "src")])
        more = {"PYTHONPATH": paths, "PYTHONDONTWRITEBYTECODE": "1", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
        return {**kept, "HOME": str(home), "TMPDIR": str(home), "PYTHONHASHSEED": "0", "NO_COLOR": "1", **more}


def _below():
    """The processes that this worker started, and those that they did; orphans come back to the worker."""
    try:
        return psutil.Process().children(recursive=True)
    except psutil.Error:
        return []


def _end(process):
    """Nothing of a tool outlives it."""
    for _ in range(5):
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            pass
        rest = [one for one in _below() if one.pid != process.pid]
        for one in rest:
            try:
                one.kill()
            except psutil.Error:
                pass
        if not rest:
            break
        psutil.wait_procs(rest, timeout=1)
    process.wait(10)


def _head(path):
    with open(path, "rb") as file:
        return file.read(2**20).decode("utf-8", "replace")


def _bounds(seconds, memory_mb):
    """What a tool does before it begins: takes its limits upon itself."""
    closed = _closed_network()

    def take():
        size = memory_mb * 2**20
        limits = ((resource.RLIMIT_DATA, size), (resource.RLIMIT_FSIZE, MAX_WRITTEN_BYTES), (resource.RLIMIT_CORE, 0))
        for what, limit in (*limits, (resource.RLIMIT_CPU, int(seconds) + 1), (resource.RLIMIT_NOFILE, 256)):
            _, hard = resource.getrlimit(what)
            lower = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
            resource.setrlimit(what, (lower, lower))
        if closed is not None:
            closed()

    return take


def _closed_network():
    """A function that closes TCP to the process that calls it; None where the kernel cannot. See landlock(7)."""
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None, use_errno=True)
    create, restrict, no_new_privileges = 444, 446, 38
    if libc.syscall(create, None, ctypes.c_size_t(0), 1) < 4:
        return None
    bind_and_connect = struct.pack("QQQ", 0, 0b11, 0)

    def close():
        rules = libc.syscall(create, bind_and_connect, ctypes.c_size_t(16), 0)
        if rules < 0 or libc.prctl(no_new_privileges, 1, 0, 0, 0) or libc.syscall(restrict, rules, 0):
            raise OSError(ctypes.get_errno(), "the network could not be closed")
        os.close(rules)

    return close


def network():
    """What the tools can reach: ``closed (TCP)`` or ``as the worker's``."""
    return "as the worker's" if _closed_network() is None else "closed (TCP)"
