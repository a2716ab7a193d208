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

// Two trials that the reader chooses: which instances of each task both get right, only one of them, neither.
const chooser = document.getElementById("chooser");
if (chooser) {
  const answers = JSON.parse(document.getElementById("answers").textContent);
  const selects = [...chooser.querySelectorAll("select")];
  const place = chooser.querySelector(".plot");
  const bit = (bytes, i) => (bytes.charCodeAt(i >> 3) >> (7 - (i & 7))) & 1; // numpy.packbits: the highest bit first
  const escaped = (name) => name.replace(/[&<>]/g, (sign) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;" })[sign]);
  const listed = (row) =>
    `${row.length} instances: ${row.slice(0, 12).join(", ")}` + (row.length > 12 ? ` and ${row.length - 12} more` : "");

  const compare = () => {
    const [first, second] = selects.map((select) => answers.trials[select.selectedIndex]);
    const [a, b] = [atob(first.right), atob(second.right)];
    const parts = [[], [], [], []]; // both, only the first, only the second, neither; a list of instances for each task
    let start = 0;
    answers.sizes.forEach((size) => {
      parts.forEach((part) => part.push([]));
      for (let i = 0; i < size; i++) {
        const kind = bit(a, start + i) ? (bit(b, start + i) ? 0 : 1) : bit(b, start + i) ? 2 : 3;
        parts[kind].at(-1).push(i);
      }
      start += size;
    });
    const total = (part) => part.reduce((sum, row) => sum + row.length, 0);
    chooser.querySelector("[role=status]").textContent =
      `Of ${start} instances ${first.name} gets ${total(parts[0]) + total(parts[1])} right and ${second.name} ` +
      `${total(parts[0]) + total(parts[2])}: ${total(parts[0])} both, ${total(parts[1])} only ${first.name}, ` +
      `${total(parts[2])} only ${second.name}.`;
    return {
      x: parts.map((part) => part.map((row, task) => row.length / answers.sizes[task])),
      text: parts.map((part) => part.map((row) => (row.length ? String(row.length) : ""))),
      customdata: parts.map((part) => part.map(listed)),
      name: ["both right", `only ${escaped(first.name)}`, `only ${escaped(second.name)}`, "neither"],
    };
  };
  selects.forEach((select, i) => {
    answers.trials.forEach((trial) => select.add(new Option(trial.said)));
    select.selectedIndex = answers.trials.findIndex((trial) => trial.number === answers.chosen[i]);
    select.addEventListener("change", () => {
      draw(place);
      Plotly.restyle(place, compare(), [0, 1, 2, 3]);
    });
  });
  compare(); // the words; the figure came with the page
}
