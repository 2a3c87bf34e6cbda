// Sorts and filters the table of slides; without it the table is complete, in the order of the slides.
const table = document.getElementById("table");
if (table) {
  document.body.classList.add("scripted");
  const body = table.tBodies[0];
  const rows = Array.from(body.rows);
  const find = document.getElementById("find");
  const status = document.getElementById("status");
  const heads = Array.from(table.tHead.rows[0].cells);
  const place = heads.findIndex((head) => head.textContent === "Status");
  const valueOf = (row, column) => row.cells[column].dataset.sort ?? row.cells[column].textContent;
  const compare = (one, other) =>
    one === "" || other === "" ? (one === "") - (other === "") :
    isNaN(one) || isNaN(other) ? one.localeCompare(other, undefined, { numeric: true }) : one - other;
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.textContent = head.textContent;
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      heads.forEach((each) => each.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const sign = down ? -1 : 1;
      rows.sort((a, b) => {
        const [one, other] = [valueOf(a, column), valueOf(b, column)];
        return one === "" || other === "" ? compare(one, other) : sign * compare(one, other);
      });
      const sorted = document.createDocumentFragment();
      for (const row of rows) sorted.append(row);
      body.append(sorted);
    });
  });
  const filter = () => {
    const text = find.value.toLowerCase();
    let shown = 0;
    for (const row of rows) {
      const fits = row.textContent.toLowerCase().includes(text);
      row.hidden = !fits || (status.value !== "" && row.cells[place].textContent !== status.value);
      shown += !row.hidden;
    }
    document.getElementById("shown").textContent = `${shown} of ${rows.length} slides`;
  };
  find.addEventListener("input", filter);
  status.addEventListener("change", filter);
}
