// SPDX-License-Identifier: Apache-2.0
// Draws one plot and leaves nothing in the page but its picture, as a data URL.
"use strict";

const read = (id) => JSON.parse(document.getElementById(id).textContent);
const { figure, options } = read("picture");

function leave(text) {
  document.documentElement.replaceChildren(document.createElement("body"));
  document.body.textContent = text;
}

Plotly.newPlot(document.getElementById("plot"), figure.data, figure.layout, { staticPlot: true })
  .then((plot) => Plotly.toImage(plot, options))
  .then(leave, (error) => leave(`error: ${error}`));
