"use strict";
(() => {
  const tests = [...document.querySelectorAll(".test")];
  const verdicts = [...document.querySelectorAll("[data-verdict].verdict")];
  const search = document.querySelector("input");
  const finding = document.querySelector("select");
  const clear = document.querySelector(".clear");
  const opened = new Set();

  // What a noscript element holds is markup without a script; with one it is text, which takes no time until wanted.
  const fill = (test) => {
    const held = test.querySelector(":scope > noscript");
    if (!held) return;
    const made = document.createElement("template");
    made.innerHTML = held.textContent;
    held.replaceWith(made.content);
  };

  const words = new Map();
  const wordsOf = (test) => {
    if (!words.has(test)) words.set(test, test.querySelector("summary").textContent.toLowerCase());
    return words.get(test);
  };

  const chosen = () => verdicts.filter((one) => one.ariaPressed === "true").map((one) => one.dataset.verdict);
  const visible = () => tests.filter((test) => !test.hidden);

  const apply = () => {
    const wanted = chosen();
    const sought = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const test of tests) {
      test.hidden = !(
        (!wanted.length || wanted.includes(test.dataset.verdict)) &&
        (!finding.value || test.dataset.findings.split(" ").includes(finding.value)) &&
        sought.every((word) => wordsOf(test).includes(word))
      );
    }
    const count = visible().length;
    const filtered = wanted.length > 0 || finding.value !== "" || sought.length > 0;
    document.querySelector(".shown").textContent =
      filtered ? `${count} of ${tests.length} tests` : `${count} test${count === 1 ? "" : "s"}`;
    document.querySelector(".nothing").hidden = count > 0 || tests.length === 0;
    clear.hidden = !filtered;
  };

  // The address tells what is shown. A test's name is written as it stands in the page's links.
  const remember = () => {
    const parts = [];
    const open = tests.filter((test) => test.open && !test.hidden);
    if (open.length) parts.push((open.includes(current) ? current : open.at(-1)).id);
    if (chosen().length) parts.push(`verdict=${chosen().join(",")}`);
    if (finding.value) parts.push(`finding=${encodeURIComponent(finding.value)}`);
    if (search.value) parts.push(`search=${encodeURIComponent(search.value)}`);
    history.replaceState(null, "", parts.length ? `#${parts.join("&")}` : location.pathname + location.search);
  };
  let current = null;

  const decoded = (text) => {
    try { return decodeURIComponent(text); } catch { return text; }
  };

  // As it stands in the page's own links, or as somebody typed it.
  const named = (name) => document.getElementById(`test=${name}`) ??
    tests.find((test) => decoded(test.id.slice("test=".length)) === decoded(name));

  // The heights of tests that were never near the screen are estimates, until they are: it takes some frames to be there.
  const bring = (test, frames) => {
    test.scrollIntoView();
    if (frames) requestAnimationFrame(() => bring(test, frames - 1));
  };

  const restore = () => {
    const told = new Map(location.hash.slice(1).split("&").map((part) => {
      const at = part.indexOf("=");
      return [part.slice(0, at), part.slice(at + 1)];
    }));
    const wanted = (told.get("verdict") ?? "").split(",");
    for (const one of verdicts) one.ariaPressed = String(wanted.includes(one.dataset.verdict));
    finding.value = decoded(told.get("finding") ?? "");
    if (finding.selectedIndex < 0) finding.value = "";
    search.value = decoded(told.get("search") ?? "");
    apply();
    const test = told.has("test") && named(told.get("test"));
    if (test) {
      test.hidden = false;
      fill(test);
      test.open = true;
      current = test;
      test.querySelector("summary").focus({ preventScroll: true });
      bring(test, 5);
    }
  };

  const changed = () => { apply(); remember(); };
  const all = () => {
    for (const one of verdicts) one.ariaPressed = "false";
    finding.value = search.value = "";
    changed();
  };
  for (const one of verdicts) {
    one.addEventListener("click", () => {
      one.ariaPressed = String(one.ariaPressed !== "true");
      changed();
    });
  }
  finding.addEventListener("change", changed);
  search.addEventListener("input", changed);
  clear.addEventListener("click", () => { all(); search.focus(); });
  addEventListener("hashchange", restore);

  document.querySelector(".tests").addEventListener("toggle", (event) => {
    const test = event.target;
    if (!test.classList.contains("test")) return;
    if (test.open) { fill(test); current = test; }
    remember();
  }, true);

  const move = (by) => {
    const shown = visible();
    if (!shown.length) return;
    const at = shown.indexOf(document.activeElement.closest(".test") ?? current);
    const to = at < 0 ? 0 : Math.min(shown.length - 1, Math.max(0, at + by));
    shown[to].querySelector("summary").focus({ preventScroll: true });
    shown[to].querySelector("summary").scrollIntoView({ block: "nearest" });
  };
  addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const at = document.activeElement;
    const inSummary = at.matches(".test > summary");
    if (event.key === "Escape") {
      if (at === search || at === finding) { if (search.value || finding.value) all(); at.blur(); }
      else at.closest?.(".test")?.removeAttribute("open");
    } else if (at.matches("input, select")) {
      if (at === search && (event.key === "ArrowDown" || event.key === "Enter")) { current = null; at.blur(); move(0); event.preventDefault(); }
    } else if (event.key === "/") {
      search.focus(); search.select(); event.preventDefault();
    } else if (event.key === "j" || (inSummary && event.key === "ArrowDown")) {
      move(1); event.preventDefault();
    } else if (event.key === "k" || (inSummary && event.key === "ArrowUp")) {
      move(-1); event.preventDefault();
    }
  });

  // On paper everything is open.
  addEventListener("beforeprint", () => {
    for (const test of visible()) {
      fill(test);
      for (const part of [test, ...test.querySelectorAll("details")]) {
        if (!part.open) { opened.add(part); part.open = true; }
      }
    }
  });
  addEventListener("afterprint", () => {
    for (const part of opened) part.open = false;
    opened.clear();
  });

  for (const part of document.querySelectorAll(".tools, footer")) part.hidden = false;
  restore();

  // What is closed is filled when there is nothing else to do, so that the browser's own search finds it.
  const rest = tests.values();
  const some = (time) => {
    while (time.timeRemaining() > 4) {
      const { value, done } = rest.next();
      if (done) return;
      fill(value);
    }
    requestIdleCallback(some);
  };
  globalThis.requestIdleCallback?.(some);
})();
