"use strict";
// What the console needs beyond plain HTML: copying, pausing the live log, and tooltips.
document.documentElement.classList.add("js");

function show(button, word) {
  const label = button.querySelector("span");
  const before = label.textContent;
  label.textContent = word;
  setTimeout(() => { label.textContent = before; }, 2000);
}

async function copy(button, text) {
  try {
    await navigator.clipboard.writeText(text);
    show(button, "Copied");
  } catch {
    show(button, "Select it and copy");
  }
}

document.addEventListener("click", (event) => {
  const button = event.target.closest("[data-copy], [data-copy-link]");
  if (!button) return;
  const source = button.dataset.copy;
  copy(button, source ? document.querySelector(source).textContent : location.href);
});

// Escape hides a tooltip, so that neither the pointer nor the focus has to move.
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape") return;
  for (const tipped of document.querySelectorAll(".tipped:hover, .tipped:focus-within")) {
    tipped.classList.add("dismissed");
    const again = () => tipped.classList.remove("dismissed");
    tipped.addEventListener("mouseleave", again, { once: true });
    tipped.addEventListener("focusout", again, { once: true });
  }
});

let paused = false;

function tellLive(state) {
  const live = document.getElementById("live");
  if (!live || live.dataset.state === state) return;
  live.dataset.state = state;
  live.textContent = live.dataset[state];
}

// What a viewer has opened or scrolled in the dashboard's figures stays so when they are updated;
// htmx itself keeps the focus.
let kept = [];
document.addEventListener("htmx:beforeSwap", (event) => {
  if (event.target.id !== "figures") return;
  kept = [...event.target.querySelectorAll("details[open]")].map((one) => {
    return [one.id, one.querySelector(".scroll")?.scrollTop ?? 0];
  });
});
document.addEventListener("htmx:load", (event) => {
  if (event.detail.elt.id !== "figures") return;
  for (const [id, top] of kept) {
    const details = document.getElementById(id);
    if (!details) continue;
    details.open = true;
    const scroll = details.querySelector(".scroll");
    if (scroll) scroll.scrollTop = top;
  }
  kept = [];
});
document.addEventListener("htmx:beforeRequest", (event) => {
  if (event.target.id === "figures" && document.hidden) event.preventDefault();
});
document.addEventListener("htmx:beforeRequest", (event) => {
  if (event.target.id !== "rows") return;
  // Rows must not move while a tooltip is open, or while one of them has the keyboard's focus.
  const isRead = event.target.querySelector(".tipped:hover, :focus-visible");
  if (paused || isRead || document.hidden) event.preventDefault();
});
// The content of a closed panel is looked up when the panel is opened.
document.addEventListener("htmx:beforeRequest", (event) => {
  const panel = event.target.closest("details");
  if (!panel) return;
  const isStale = "stale" in panel.dataset;
  const isToggled = event.detail.requestConfig.triggeringEvent?.type === "toggle";
  if (panel.open) delete panel.dataset.stale;
  else panel.dataset.stale = "";
  if (!panel.open || (isToggled && !isStale)) event.preventDefault();
});
document.addEventListener("htmx:afterRequest", (event) => {
  if (!["rows", "figures"].includes(event.target.id) || paused) return;
  const status = event.detail.xhr.status;
  tellLive(status >= 200 && status < 300 ? "live" : "away");
});

// Before the page is left, the browser asks about values that were typed and not saved.
const unsaved = new Set();

function noteUnsaved(form) {
  const before = new URLSearchParams(new FormData(form)).toString();
  const note = form.querySelector("[data-unsaved-note]");
  const check = () => {
    const changed = new URLSearchParams(new FormData(form)).toString() !== before;
    if (changed) unsaved.add(form);
    else unsaved.delete(form);
    if (note) note.textContent = changed ? "Unsaved changes" : "";
  };
  form.addEventListener("input", check);
  form.addEventListener("submit", () => unsaved.delete(form));
  form.querySelector("[data-discard]")?.addEventListener("click", () => unsaved.delete(form));
  // A form that came back is unsaved from the start.
  if ("typed" in form.dataset) {
    unsaved.add(form);
    if (note) note.textContent = "Unsaved changes";
  }
}

window.addEventListener("beforeunload", (event) => {
  if (unsaved.size) event.preventDefault();
});

// One box ticks all others of a form; buttons that need a tick wait for one.
function followTicks(form) {
  const all = form.querySelector("[data-all]");
  const boxes = [...form.querySelectorAll(`input[name="${all.dataset.all}"]`)];
  const buttons = form.querySelectorAll("[data-needs]");
  const check = () => {
    const ticked = boxes.filter((box) => box.checked).length;
    all.checked = ticked > 0 && ticked === boxes.length;
    all.indeterminate = ticked > 0 && ticked < boxes.length;
    for (const button of buttons) button.disabled = ticked === 0;
  };
  all.addEventListener("change", () => {
    for (const box of boxes) box.checked = all.checked;
    check();
  });
  form.addEventListener("change", check);
  check();
}

document.addEventListener("DOMContentLoaded", () => {
  document.querySelectorAll("form[data-unsaved]").forEach(noteUnsaved);
  for (const all of document.querySelectorAll("[data-all]")) followTicks(all.closest("form"));
  const pause = document.getElementById("pause");
  pause?.addEventListener("click", () => {
    paused = !paused;
    pause.setAttribute("aria-pressed", String(paused));
    tellLive(paused ? "paused" : "live");
  });
  // Reloading the page that shows a new key must not create another key.
  const once = document.querySelector("[data-once]");
  if (once) history.replaceState(null, "", once.dataset.once);
});
