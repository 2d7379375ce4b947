// Tables of the class "sortable": a click on a column's head, or Enter on it, sorts the rows by that column.
"use strict";
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];
  const text = (row, column) => row.cells[column].dataset.value ?? row.cells[column].textContent.trim();
  // a typographic minus is a minus; what is no number comes after all numbers, whichever way they run
  const number = (word) => (word === "" ? NaN : Number(word.replace("\u2212", "-")));
  function sort(column) {
    const up = heads[column].getAttribute("aria-sort") !== "ascending";
    heads.forEach((head) => head.removeAttribute("aria-sort"));
    heads[column].setAttribute("aria-sort", up ? "ascending" : "descending");
    const rows = [...body.rows].map((row) => ({ row, word: text(row, column), value: number(text(row, column)) }));
    const words = rows.every(({ value }) => Number.isNaN(value));
    rows.sort((a, b) => {
      if (words) return (up ? 1 : -1) * a.word.localeCompare(b.word);
      if (Number.isNaN(a.value) || Number.isNaN(b.value)) return Number.isNaN(a.value) - Number.isNaN(b.value);
      return (up ? 1 : -1) * (a.value - b.value);
    });
    body.append(...rows.map(({ row }) => row));
  }
  heads.forEach((head, column) => {
    head.tabIndex = 0;
    head.setAttribute("role", "columnheader");
    head.addEventListener("click", () => sort(column));
    head.addEventListener("keydown", (event) => { if (event.key === "Enter") sort(column); });
  });
}
