// Draws the figures of the page, follows the colour scheme, and shows the attention of the chosen head.
(() => {
  "use strict";
  const { figures, templates } = JSON.parse(document.getElementById("figure-data").textContent);
  const attention = JSON.parse(document.getElementById("attention-data").textContent);
  const root = document.documentElement;
  const prefersDark = window.matchMedia("(prefers-color-scheme: dark)");
  const config = { displaylogo: false, responsive: true, displayModeBar: false, scrollZoom: false };
  let chosen = null; // "light", "dark", or null to follow the system
  let printing = false;

  const scheme = () => (printing ? "light" : chosen || (prefersDark.matches ? "dark" : "light"));

  // A figure that is hidden is drawn when it is shown.
  function draw(holder) {
    if (!holder.offsetParent) return Promise.resolve();
    const size = holder.parentElement.clientWidth < 620 ? "narrow" : "wide";
    const form = figures[holder.dataset.figure][size];
    // Below this the labels of the form would meet; the figure then scrolls sideways.
    holder.style.minWidth = size === "wide" ? "800px" : "312px";
    holder.style.height = form.height + "px";
    holder.dataset.scheme = scheme();
    const { data, layout } = structuredClone(form[scheme()]);
    if (size === "narrow") layout.dragmode = false; // a finger scrolls the page
    layout.template = templates[`${size}-${scheme()}`];
    return Plotly.react(holder, data, layout, config);
  }

  const holders = [...document.querySelectorAll("[data-figure]")];
  const drawAll = () => Promise.all(holders.map(draw));

  const button = document.getElementById("scheme");
  function label() {
    button.textContent = scheme() === "dark" ? "Light colours" : "Dark colours";
  }
  button.hidden = false;
  button.addEventListener("click", () => {
    chosen = scheme() === "dark" ? "light" : "dark";
    root.style.colorScheme = chosen;
    label();
    drawAll();
  });
  prefersDark.addEventListener("change", () => {
    label();
    drawAll();
  });
  window.addEventListener("beforeprint", () => {
    printing = true;
    drawAll();
  });
  window.addEventListener("afterprint", () => {
    printing = false;
    drawAll();
  });

  let wide = window.innerWidth;
  window.addEventListener("resize", () => {
    // Plotly itself follows small changes; crossing the width of the narrow form takes another drawing.
    if (wide < 700 !== window.innerWidth < 700) drawAll();
    wide = window.innerWidth;
  });

  // The prompt: each token is tinted by the attention it gets from the chosen head for the chosen answer token.
  const head = document.getElementById("head");
  const step = document.getElementById("step");
  const tokens = [...document.querySelectorAll("#prompt [data-token]")];
  const folds = [...document.querySelectorAll("#prompt [data-fold]")];

  function row() {
    const every = head.value ? [attention.heads[head.value]] : Object.values(attention.heads);
    const rows = every.flatMap((lines) => (step.value === "" ? lines : lines.slice(+step.value, +step.value + 1)));
    const out = new Array(tokens.length).fill(0);
    for (const line of rows) line.forEach((v, i) => i < out.length && (out[i] += v / rows.length));
    return out;
  }

  function tint() {
    const weights = row();
    // The first token is where attention rests; scaled with it, nothing else would show.
    const top = Math.max(1e-6, ...weights.slice(1));
    for (const token of tokens) {
      const weight = weights[+token.dataset.token];
      token.style.setProperty("--weight", Math.min(1, weight / top).toFixed(3));
      token.title = `token ${token.dataset.token}${token.dataset.role ? ", " + token.dataset.role : ""}: attention ${weight.toFixed(3)}`;
    }
    for (const fold of folds) {
      const sum = weights.slice(+fold.dataset.start, +fold.dataset.stop).reduce((a, b) => a + b, 0);
      fold.textContent = `, attention ${sum.toFixed(2)}`;
    }
  }

  function choose() {
    for (const figure of document.querySelectorAll("[data-head]")) figure.hidden = figure.dataset.head !== head.value;
    tint();
    drawAll();
  }

  for (const button of document.querySelectorAll(".fold")) {
    const inside = document.getElementById(button.getAttribute("aria-controls"));
    const open = (wanted) => {
      inside.hidden = !wanted;
      button.setAttribute("aria-expanded", wanted);
    };
    button.hidden = false;
    open(false);
    button.addEventListener("click", () => open(inside.hidden));
  }

  if (head && step) {
    head.addEventListener("change", choose);
    step.addEventListener("change", tint);
    tint();
  }
  label();
  drawAll().then(() => root.setAttribute("data-ready", ""));
})();
