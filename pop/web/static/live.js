// Keeps a page current. <main data-live="/live/board?..." data-mark="..."> names the stream and what the page holds;
// an event's fragments replace the elements of the same id. A hidden tab lets go of its connection: browsers have few.
(() => {
  "use strict";
  const main = document.querySelector("[data-live]");
  const said = document.getElementById("live-state");
  let source = null;
  let mark = main ? main.dataset.mark || "" : "";
  let lastSaid = "";

  function say(state) {
    if (!said || state === lastSaid) return;
    lastSaid = state;
    said.hidden = false;
    said.className = "live-state " + state;
    said.textContent = { live: "live", lost: "reconnecting", paused: "paused" }[state];
  }

  const keep = {
    beforeAttributeUpdated(name, node) {
      if (name === "open" && node.tagName === "DETAILS") return false; // what a person opened stays open
      if (name === "style") return false; // the server writes none: it is ours
      return undefined;
    },
    beforeNodeMorphed(before, after) {
      if (before === document.activeElement && before.matches("input, textarea, select")) return false;
      if (before.type === "checkbox" && before.id === after.id) return false; // what a person ticked stays ticked
      if (before.isEqualNode(after)) return false;
      return undefined;
    },
  };

  // What has data-follow stays at its end, until somebody scrolls back to read.
  const atEnd = (node) => node.scrollHeight - node.scrollTop - node.clientHeight < 40;
  function follow(left) {
    for (const node of document.querySelectorAll("[data-follow]")) if (!left.has(node)) node.scrollTop = node.scrollHeight;
  }

  function replace(html) {
    const template = document.createElement("template");
    template.innerHTML = html;
    for (const next of [...template.content.children]) {
      const old = next.id && document.getElementById(next.id);
      if (!old) continue;
      const left = new Set([...document.querySelectorAll("[data-follow]")].filter((node) => !atEnd(node)));
      Idiomorph.morph(old, next, { morphStyle: "outerHTML", callbacks: keep });
      follow(left);
    }
    localTimes(document);
    hold();
    document.dispatchEvent(new CustomEvent("pop:changed"));
  }

  // Sections with data-steady never shrink while the page is open: what stands below them would jump.
  const heights = new Map();
  function hold() {
    for (const node of document.querySelectorAll("[data-steady][id]")) {
      const most = Math.max(node.offsetHeight, heights.get(node.id) || 0);
      heights.set(node.id, most);
      node.style.minHeight = most + "px";
    }
  }

  function open() {
    if (source || !main) return;
    const url = new URL(main.dataset.live, location.href);
    if (mark) url.searchParams.set("after", mark);
    source = new EventSource(url);
    source.onopen = () => say("live");
    source.addEventListener("fragments", (event) => {
      mark = event.lastEventId || mark;
      replace(event.data);
    });
    source.addEventListener("over", () => { close(); location.reload(); });
    source.onerror = () => {
      say("lost");
      if (source && source.readyState === EventSource.CLOSED) { // refused, not lost: ask again by hand
        close();
        setTimeout(open, 3000);
      }
    };
  }

  function close() {
    if (source) source.close();
    source = null;
  }

  // Times are written in UTC by the server and shown in the reader's zone.
  const day = new Intl.DateTimeFormat(undefined, { day: "2-digit", month: "short" });
  const hour = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", second: "2-digit", hour12: false });
  const minute = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", hour12: false });
  function localTimes(within) {
    const today = new Date().toDateString();
    for (const node of within.querySelectorAll("time[datetime]")) {
      const at = new Date(node.getAttribute("datetime"));
      if (Number.isNaN(at.getTime())) continue;
      const text = at.toDateString() === today ? hour.format(at) : `${day.format(at)} ${minute.format(at)}`;
      if (node.textContent !== text) node.textContent = text;
      if (!node.title) node.title = at.toLocaleString();
    }
  }

  localTimes(document);
  hold();
  follow(new Set());
  addEventListener("resize", () => {
    heights.clear();
    for (const node of document.querySelectorAll("[data-steady]")) node.style.minHeight = "";
  });
  if (main) {
    document.addEventListener("visibilitychange", () => {
      if (document.hidden) { close(); say("paused"); } else open();
    });
    addEventListener("pagehide", close);
    addEventListener("pageshow", (event) => { if (event.persisted) open(); });
    if (!document.hidden) open();
  }

  // Forms with data-auto send themselves when a choice changes; `/` goes to the search.
  document.addEventListener("change", (event) => {
    const form = event.target.closest && event.target.closest("form[data-auto]");
    if (form) form.requestSubmit();
  });
  document.addEventListener("keydown", (event) => {
    if (event.key !== "/" || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.target.closest("input, textarea, select, [contenteditable]")) return;
    const search = document.querySelector("input[type=search]");
    if (search) { event.preventDefault(); search.focus(); search.select(); }
  });
})();
