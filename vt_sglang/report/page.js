// SPDX-License-Identifier: Apache-2.0
// Draws every plot of the page, in the colours of the reader's theme, and again when that changes.
"use strict";

const read = (id) => JSON.parse(document.getElementById(id).textContent);
const figures = read("figures");
const themes = read("themes");
const dark = window.matchMedia("(prefers-color-scheme: dark)");
const config = {
  responsive: true,
  displaylogo: false,
  displayModeBar: false,
};

function layoutOf(figure) {
  const theme = themes[document.documentElement.dataset.theme || (dark.matches ? "dark" : "light")];
  const template = structuredClone(theme.template);
  template.layout.colorway = figure.colours.map((colour) => theme.colours[colour]);
  return { ...structuredClone(figure.layout), template };
}

function draw() {
  return Promise.all(
    Object.entries(figures).map(([name, figure]) =>
      Plotly.react(document.getElementById(`plot-${name}`), figure.data, layoutOf(figure), config),
    ),
  );
}

draw().then(() => {
  document.documentElement.dataset.drawn = "true";
});
dark.addEventListener("change", draw);
