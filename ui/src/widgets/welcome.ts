// The first visit: ten lines of code that log a run.

import { button, h } from "../base/dom";

export function welcome(project = "demo"): HTMLElement {
  const endpoint = location.origin === "http://127.0.0.1:4320" ? "" : `export TENSORMETER_ENDPOINT=${location.origin}\n`;
  const code = `import math, random, tensormeter

with tensormeter.init(project=${JSON.stringify(project)}, config={"lr": 1e-3}) as run:
    for step in range(1000):
        loss = math.exp(-step / 200) + 0.05 * random.random()
        run.log({"train/loss": loss, "train/lr": 1e-3}, step)
        if step % 50 == 0:
            run.log({"eval/accuracy": 1 - loss}, step)
print("logged run", run.id)`;
  const snippet = h("pre", { class: "code", tabindex: 0 }, code);
  const copy = button("Copy", async () => {
    await navigator.clipboard.writeText(code);
    copy.textContent = "Copied";
  });
  return h(
    "div",
    { class: "state welcome" },
    h("h1", {}, "No runs yet"),
    h("p", {}, "Log a first run with these ten lines. It appears here automatically."),
    endpoint ? h("pre", { class: "code", tabindex: 0 }, endpoint.trim()) : null,
    h("div", { class: "example" }, snippet, copy),
    h("p", { class: "muted" }, "You can log CPU and GPU tensors directly: log never waits for the GPU."),
  );
}
