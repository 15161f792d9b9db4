"use strict";
// Sorting: the button in a column's head sorts by that column, and again the other way round.
// A cell's data-value is its number; cells without a value stay last either way.
for (const table of document.querySelectorAll("table.sortable")) {
  for (const button of table.tHead.querySelectorAll("button")) {
    button.addEventListener("click", () => {
      const head = button.closest("th");
      const column = Number(head.dataset.column);
      const way = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
      for (const other of table.tHead.querySelectorAll("th[aria-sort]")) {
        other.removeAttribute("aria-sort");
      }
      head.setAttribute("aria-sort", way === 1 ? "ascending" : "descending");
      const key = (row) => {
        const cell = row.cells[column];
        return "value" in cell.dataset ? Number(cell.dataset.value) : cell.textContent.trim();
      };
      const compare = (a, b) => {
        const [x, y] = [key(a), key(b)];
        if (x === "" || y === "") return (x === "") - (y === "");
        if (typeof x === "number" && typeof y === "number") return way * (x - y);
        return way * String(x).localeCompare(String(y), "en", { numeric: true });
      };
      table.tBodies[0].append(...[...table.tBodies[0].rows].sort(compare));
    });
  }
}
// Finding: rows that hold every word typed, of all rows, also those that are folded away.
const field = document.getElementById("find");
field?.addEventListener("input", () => {
  const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
  const rows = [...document.querySelectorAll("#numbers tbody tr")];
  for (const row of rows) {
    const text = row.textContent.toLowerCase();
    row.hidden = !words.every((word) => text.includes(word));
  }
  document.getElementById("numbers").classList.toggle("finding", words.length > 0);
  const found = rows.filter((row) => !row.hidden).length;
  document.getElementById("found").textContent = words.length ? `${found} found` : "";
});
