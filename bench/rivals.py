"""What the gateway is compared with: the openai SDK and litellm's Router, each in a process of its own."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import openai

from bench.load import PROMPT, Load, cpu_s


def sdk_loop(base_url: str, calls: int, in_flight: int) -> Load:
    """The openai SDK as its manual says, in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_sdk, base_url, calls, in_flight).result()


def _sdk(base_url: str, calls: int, in_flight: int) -> Load:
    return asyncio.run(_ask_sdk(base_url, calls, in_flight))


async def _ask_sdk(base_url: str, calls: int, in_flight: int) -> Load:
    client = openai.AsyncOpenAI(api_key="k", base_url=base_url, max_retries=0)
    latencies_s, left = list[float](), iter(range(calls))

    async def one() -> None:
        began = time.perf_counter()
        await client.chat.completions.create(model="zero", messages=[{"role": "user", "content": PROMPT}])
        latencies_s.append(time.perf_counter() - began)

    async def several() -> None:
        for _ in left:
            await one()

    for _ in range(20):
        await one()
    latencies_s.clear()
    before, began = cpu_s(), time.perf_counter()
    await asyncio.gather(*(several() for _ in range(in_flight)))
    return Load(len(latencies_s), calls, time.perf_counter() - began, latencies_s, cpu_s() - before)


LITELLM = """
import asyncio, json, resource, sys, time
from importlib.metadata import version
import litellm
base_url, calls, in_flight, prompt = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
litellm.suppress_debug_info = True
about = {"model": "openai/zero", "api_base": base_url, "api_key": "k"}
router = litellm.Router(model_list=[{"model_name": "zero", "litellm_params": about}], num_retries=0)

def cpu_s():
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime

async def main():
    left, found = iter(range(calls)), []
    async def one():
        began = time.perf_counter()
        await router.acompletion(model="zero", messages=[{"role": "user", "content": prompt}])
        found.append(time.perf_counter() - began)
    async def several():
        for _ in left:
            await one()
    for _ in range(20):
        await one()
    found.clear()
    before, began = cpu_s(), time.perf_counter()
    await asyncio.gather(*(several() for _ in range(in_flight)))
    wall_s = time.perf_counter() - began
    about = {"answered": len(found), "calls": calls, "wall_s": wall_s, "latencies_s": found, "cpu_s": cpu_s() - before}
    print("\\n" + json.dumps({"version": version("litellm"), "load": about}))

asyncio.run(main())
"""


def litellm_python() -> str | None:
    """The interpreter that has litellm."""
    named = os.environ.get("BENCH_LITELLM_PYTHON")
    return named or (sys.executable if importlib.util.find_spec("litellm") else None)


def litellm_loop(python: str, base_url: str, calls: int, in_flight: int) -> tuple[str, Load]:
    """litellm's Router, its version and what it took.

    Raises:
        RuntimeError: It failed; with the end of what it said.
    """
    arguments = [python, "-c", LITELLM, base_url, str(calls), str(in_flight), PROMPT]
    environ = {**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    done = subprocess.run(arguments, capture_output=True, text=True, env=environ)
    if done.returncode:
        raise RuntimeError(f"litellm: {done.stderr[-500:]}")
    found = json.loads(done.stdout.strip().splitlines()[-1])
    return found["version"], Load(**found["load"])
