// Charts that follow the theme (their colours are names of the style sheet), tables that are sorted and filtered.
for (const place of document.querySelectorAll(".chart")) {
  const spec = JSON.parse(document.getElementById(place.dataset.spec).textContent);
  vegaEmbed(place, spec, { actions: false, renderer: "svg", logLevel: 1 }).then(({ view }) => {
    const drawing = place.querySelector("svg");
    drawing.setAttribute("role", "img");
    drawing.setAttribute("aria-label", spec.description);
    const controls = document.querySelector(`[data-zooms="${place.id}"]`);
    if (controls) zoom(view, controls);
  });
}

function zoom(view, controls) {
  const [closer, at] = controls.querySelectorAll("input");
  const whole = view.signal("to");
  const show = () => {
    const width = whole / 2 ** Number(closer.value);
    const from = (whole - width) * Number(at.value);
    view.signal("from", from).signal("to", from + width).run();
    const told = `${from.toFixed(2)} to ${(from + width).toFixed(2)} s`;
    controls.querySelector("output").textContent = told;
  };
  closer.addEventListener("input", show);
  at.addEventListener("input", show);
  show();
}

function sortKey(row, column) {
  const cell = row.cells[column];
  const value = Number(cell.dataset.value);
  return cell.dataset.value === undefined ? cell.textContent : value;
}

function compare(a, b) {
  if (typeof a === "number" && typeof b === "number") return a - b;
  if (typeof a === typeof b) return a.localeCompare(b);
  return typeof a === "number" ? -1 : 1;
}

for (const button of document.querySelectorAll("th button")) {
  button.addEventListener("click", () => {
    const header = button.parentElement;
    const body = header.closest("table").tBodies[0];
    const up = header.getAttribute("aria-sort") !== "ascending";
    for (const other of header.parentElement.cells) other.setAttribute("aria-sort", "none");
    header.setAttribute("aria-sort", up ? "ascending" : "descending");
    const keyed = [...body.rows].map((row) => [sortKey(row, header.cellIndex), row]);
    keyed.sort(([a], [b]) => (up ? compare(a, b) : compare(b, a)));
    body.append(...keyed.map(([, row]) => row));
  });
}

for (const controls of document.querySelectorAll("[data-filters]")) {
  const rows = [...document.getElementById(controls.dataset.filters).tBodies[0].rows];
  const words = controls.querySelector("input[type=search]");
  const fits = controls.querySelector("input[type=checkbox]");
  const show = () => {
    const wanted = words.value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const row of rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = (fits.checked && row.classList.contains("no")) || !wanted.every((word) => text.includes(word));
    }
    controls.querySelector("output").textContent = `${rows.filter((row) => !row.hidden).length} of ${rows.length} shown`;
  };
  words.addEventListener("input", show);
  fits.addEventListener("change", show);
  show();
}

for (const form of document.querySelectorAll(".question")) { // an address tells what is asked, and no more
  form.addEventListener("submit", () => {
    for (const field of form.querySelectorAll("input, select")) field.disabled = field.value === "";
  });
  addEventListener("pageshow", () => {
    for (const field of form.querySelectorAll("input, select")) field.disabled = false;
  });
}
