"use strict";
// A figure is drawn when it comes near the window: thousands of points in a dozen figures would keep a page from opening.
function draw(place) {
  if (place.dataset.drawn) return;
  place.dataset.drawn = "yes";
  const spec = JSON.parse(document.getElementById(place.dataset.figure).textContent);
  Plotly.newPlot(place, spec.data, spec.layout, { responsive: true, displaylogo: false, displayModeBar: "hover" });
  place.on("plotly_click", (event) => show(event.points[0].customdata));
}

function show(trial) {
  const row = document.getElementById("row-" + trial);
  if (!row) return; // not a trial, or not of the front
  document.querySelectorAll("tr.shown").forEach((other) => other.classList.remove("shown"));
  row.classList.add("shown");
  row.scrollIntoView({ block: "center" });
}


const places = document.querySelectorAll(".plot");
const near = new IntersectionObserver(
  (entries) => entries.filter((entry) => entry.isIntersecting).forEach((entry) => draw(entry.target)),
  { rootMargin: "400px" }
);
places.forEach((place) => near.observe(place));
window.addEventListener("beforeprint", () => places.forEach(draw));

// Tables sort by the column whose heading is pressed: numbers by value, largest first, then the other way round.
document.querySelectorAll("table.sortable").forEach((table) => {
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    head.querySelector("button").addEventListener("click", () => {
      const text = head.classList.contains("text");
      const descending = head.getAttribute("aria-sort") ? head.getAttribute("aria-sort") === "ascending" : !text;
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", descending ? "descending" : "ascending");
      const key = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent;
      const order = text ? (a, b) => key(a).localeCompare(key(b)) : (a, b) => Number(key(a)) - Number(key(b));
      const rows = [...body.rows].sort((a, b) => (descending ? order(b, a) : order(a, b)));
      body.append(...rows);
    });
  });
});
