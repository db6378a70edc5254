"use strict";
// Everything here makes pages quicker to use; they work without it. Forms go to /form either way.

// Forms: sent without leaving the page, so that what was typed stays when something is wrong.
// data-fill names a field that takes the answer; the fields of that field's form take what was
// typed here under the same names.
document.addEventListener("submit", async (event) => {
  const form = event.target;
  if (form.getAttribute("action") !== "/form") return;
  event.preventDefault();
  if (event.submitter?.name === "_preview") return void preview(form);
  const fields = new FormData(form, event.submitter);
  if (fields.get("_confirm") && !window.confirm(fields.get("_confirm"))) return;
  const message = form.querySelector("[role=status]");
  const buttons = form.querySelectorAll("button");
  const say = (text, kind) => { message.textContent = text; message.className = kind; };
  buttons.forEach((button) => { button.disabled = true; });
  say("Working…", "quiet");
  try {
    const answer = await fetch("/form", {
      method: "POST", headers: { Accept: "application/json" }, body: new URLSearchParams(fields),
    });
    const result = await answer.json();
    if (!answer.ok) say(`${result.error}. ${result.next_step ?? ""} [${result.code}]`, "failure");
    else if (fields.get("_show")) {
      const shown = result.result[fields.get("_show")];
      say(shown, "shown");
      const target = document.getElementById(form.dataset.fill ?? "");
      if (target) {
        target.value = shown;
        for (const field of form.elements) {
          const same = field.name && !field.name.startsWith("_") && target.form.elements.namedItem(field.name);
          if (same) same.value = field.value;
        }
      }
    } else {
      const next = fields.get("_next") ? result.next : window.location.href;
      if (next === window.location.pathname + window.location.search) window.location.reload();
      else window.location.assign(next);
      return;
    }
  } catch (error) {
    say(`The appliance does not answer: ${error.message}`, "failure");
  }
  buttons.forEach((button) => { button.disabled = false; });
});

// One request at a time, and one more if something has changed meanwhile: a hypervisor may take long
// to answer, and whoever types or watches must not fill the appliance with requests that wait.
function alone(work) {
  let busy = false;
  let again = false;
  return async () => {
    again = true;
    if (busy) return;
    busy = true;
    while (again) {
      again = false;
      await work().catch(() => {});
    }
    busy = false;
  };
}

// Parts of a page (data-part, by id) are taken from the page asked for again; what is in use stays.
async function renew(address) {
  const answer = await fetch(address, { headers: { Accept: "text/html", "X-Background": "1" } });
  if (!answer.ok) return;
  const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
  for (const part of document.querySelectorAll("[data-part]")) {
    const other = fresh.getElementById(part.id);
    if (other === null) return void window.location.reload();
    if (part.contains(document.activeElement) && part.querySelector("form")) continue;
    if (other.innerHTML !== part.innerHTML) part.replaceChildren(...other.childNodes);
  }
}

// The preview of a form: its page, with what was typed so far.
async function preview(form) {
  const pairs = [...new FormData(form)].filter(([name, value]) => !name.startsWith("_") && value !== "");
  await renew(`${window.location.pathname}?${new URLSearchParams(pairs)}`);
}
for (const form of document.querySelectorAll("[data-preview]")) {
  let timer = 0;
  const previewAlone = alone(() => preview(form));
  form.addEventListener("input", (event) => {
    const hides = event.target.dataset.hides;
    if (hides) {
      const hidden = document.getElementById(hides);
      hidden.hidden = hidden.disabled = event.target.value !== "";
    }
    clearTimeout(timer);
    timer = setTimeout(previewAlone, 400);
  });
}

// Live pages: an event of a kind that the page waits for renews its parts, at most once a second.
const kinds = (document.body.dataset.live ?? "").split(" ").filter(Boolean);
if (kinds.length) {
  let events = null;
  let waiting = false;
  const renewAlone = alone(() => renew(window.location.href));
  const soon = () => {
    if (waiting) return;
    waiting = true;
    setTimeout(() => { waiting = false; renewAlone(); }, 1000);
  };
  const watch = () => {
    if (document.visibilityState === "hidden") {
      events?.close();
      events = null;
    } else if (events === null) {
      events = new EventSource(`/api/v1/events?kinds=${kinds.join(",")}`);
      for (const kind of [...kinds, "resync"]) events.addEventListener(kind, soon);
    }
  };
  document.addEventListener("visibilitychange", watch);
  window.addEventListener("pagehide", () => { events?.close(); events = null; });
  watch();
}
