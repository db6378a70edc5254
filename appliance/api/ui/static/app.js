"use strict";
// Forms with data-api="METHOD /path" are sent to the API as JSON; {name} in the path is taken from a
// field. data-next is where to go when it worked; without it the page is loaded again. data-show names
// the part of the answer to show instead; data-fill the field that takes it, and the fields of that
// field's form take what was typed here under the same names.
document.addEventListener("submit", async (event) => {
  const form = event.target;
  if (!form.dataset.api) return;
  event.preventDefault();
  if (form.dataset.confirm && !window.confirm(form.dataset.confirm)) return;
  const [method, template] = form.dataset.api.split(" ");
  const body = {};
  for (const field of form.elements) {
    if (!field.name || field.value === "") continue;
    if (field.type === "checkbox") body[field.name] = field.checked;
    else if (field.type === "number") body[field.name] = Number(field.value);
    else body[field.name] = field.value;
  }
  const path = template.replace(/\{(\w+)\}/g, (_, name) => {
    const value = encodeURIComponent(body[name] ?? "");
    delete body[name];
    return value;
  });
  const message = form.querySelector("[role=status]");
  const button = form.querySelector("button");
  button.disabled = true;
  message.textContent = "Working…";
  try {
    const csrf = document.querySelector("meta[name=csrf]")?.content ?? "";
    const options = { method, headers: { "X-CSRF-Token": csrf } };
    if (!("bare" in form.dataset)) {
      options.headers["Content-Type"] = "application/json";
      options.body = JSON.stringify(body);
    }
    const answer = await fetch("/api/v1" + path, options);
    const result = answer.status === 204 ? null : await answer.json();
    if (!answer.ok) {
      message.textContent = `${result.error}. ${result.next_step ?? ""} [${result.code}]`;
      message.className = "failure";
    } else if (form.dataset.show) {
      message.textContent = result[form.dataset.show];
      message.className = "shown";
      const target = form.dataset.fill && document.getElementById(form.dataset.fill);
      if (target) {
        target.value = result[form.dataset.show];
        for (const field of form.elements) {
          const same = field.name && target.form.elements.namedItem(field.name);
          if (same) same.value = field.value;
        }
      }
    } else {
      window.location.assign(form.dataset.next ?? window.location.href);
      return;
    }
  } catch (error) {
    message.textContent = `The appliance does not answer: ${error.message}`;
    message.className = "failure";
  }
  button.disabled = false;
});

// Pages that show something running ask again after data-reload seconds, unless a form is in use.
const seconds = Number(document.body.dataset.reload);
if (seconds > 0) {
  setInterval(() => {
    if (!document.activeElement?.closest("form")) window.location.reload();
  }, seconds * 1000);
}
