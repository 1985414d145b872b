// SPDX-License-Identifier: Apache-2.0
// Draws every plot of the page, in the colours of the reader's theme, and again when that changes.
"use strict";

const read = (id) => JSON.parse(document.getElementById(id).textContent);
const figures = read("figures");
const themes = read("themes");
const dark = window.matchMedia("(prefers-color-scheme: dark)");
const [NARROW_PX, LINE_PX] = [600, 20];
const config = {
  displaylogo: false,
  displayModeBar: false,
};

function layoutOf(figure) {
  const theme = themes[document.documentElement.dataset.theme || (dark.matches ? "dark" : "light")];
  const template = structuredClone(theme.template);
  template.layout.colorway = figure.colours.map((colour) => theme.colours[colour]);
  return { ...structuredClone(figure.layout), autosize: true, template };
}

// On a narrow screen a legend has a name a line, and takes its room above the plot.
function heightOf(figure, width) {
  return figure.height + (width < NARROW_PX && figure.data.length > 1 ? LINE_PX * (figure.data.length - 1) : 0);
}

function draw() {
  return Promise.all(
    Object.entries(figures).map(([name, figure]) => {
      const place = document.getElementById(`plot-${name}`);
      place.style.height = `${heightOf(figure, place.clientWidth)}px`;
      return Plotly.react(place, figure.data, layoutOf(figure), config);
    }),
  );
}

draw().then(() => {
  document.documentElement.dataset.drawn = "true";
});
dark.addEventListener("change", draw);
let due;
window.addEventListener("resize", () => {
  clearTimeout(due);
  due = setTimeout(draw, 100);
});
