"use strict";
// Times in the viewer's zone, with UTC on hover: pages have them in UTC.
(() => {
  const MONTHS = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
  const pad = (number, digits = 2) => String(number).padStart(digits, "0");
  const day = (at) => `${at.getFullYear()}-${pad(at.getMonth() + 1)}-${pad(at.getDate())}`;
  const clock = (at) => `${pad(at.getHours())}:${pad(at.getMinutes())}`;
  const seconds = (at) => `${clock(at)}:${pad(at.getSeconds())}`;
  const utc = (text) => new Date(`${text}Z`);
  const typed = (at) => `${day(at)}T${clock(at)}`;

  const FORMS = {
    full: (at) => `${day(at)} ${seconds(at)}`,
    exact: (at) => `${day(at)} ${seconds(at)}.${pad(at.getMilliseconds(), 3)}`,
  };

  function put(element) {
    const at = new Date(element.dateTime);
    if (Number.isNaN(at.getTime())) return;
    element.title = `${element.dateTime.slice(0, 19).replace("T", " ")} UTC`;
    if (element.dataset.local === "short") {
      const date = document.createElement("span");
      date.textContent = `${MONTHS[at.getMonth()]} ${pad(at.getDate())}`;
      element.replaceChildren(date, ` ${seconds(at)}`);
    } else {
      element.textContent = FORMS[element.dataset.local](at);
    }
  }

  function zone() {
    const parts = new Intl.DateTimeFormat("en", { timeZoneName: "short" }).formatToParts(new Date());
    return parts.find((part) => part.type === "timeZoneName")?.value ?? "local time";
  }

  function localise(root) {
    for (const element of root.querySelectorAll("time[data-local]")) put(element);
    for (const element of root.querySelectorAll(".zone")) {
      element.textContent = zone();
      element.title = Intl.DateTimeFormat().resolvedOptions().timeZone;
    }
    for (const input of root.querySelectorAll("input[data-local]")) {
      const given = input.getAttribute("value");
      if (given) input.value = typed(utc(given));
    }
  }

  document.addEventListener("DOMContentLoaded", () => localise(document));
  document.addEventListener("htmx:load", (event) => localise(event.detail.elt));
  // What was typed in the viewer's zone is sent in UTC.
  document.addEventListener("formdata", (event) => {
    for (const input of event.target.querySelectorAll("input[data-local]")) {
      if (!input.value) continue;
      event.formData.set(input.name, new Date(input.value).toISOString().slice(0, 16));
    }
  });
  // Empty fields are not sent, so that URLs stay short.
  document.addEventListener("formdata", (event) => {
    if (event.target.method !== "get") return;
    for (const [name, value] of [...event.formData]) if (value === "") event.formData.delete(name);
  });
})();
