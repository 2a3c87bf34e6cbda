"use strict";
// All texts of slides reach the page as textContent, never as HTML.
const $ = (selector) => document.querySelector(selector);
const make = (tag, text = "", kind = "") => Object.assign(document.createElement(tag), { textContent: text, className: kind });
const shown = (value, digits = 4) => (value === null || Number.isNaN(value) ? "–" : typeof value !== "number" ? String(value)
  : Number.isInteger(value) ? String(value) : Math.abs(value) < 1e-3 ? value.toExponential(2) : value.toPrecision(digits));
const get = async (name) => {
  const answer = await fetch(name).catch(() => { throw new Error("the viewer does not answer; was it stopped?"); });
  if (!answer.ok) throw new Error(`${name}: ${answer.status} ${answer.statusText}`);
  return answer.json();
};
const STEP = 200; // rows of the list that are drawn at a time, an even number
const opacity = {}; // of overlays, as chosen; kept from slide to slide
let table, order = [], first = 0, last = 0, sorted = [-1, 1], current = -1, views = null, plot = null, timer = 0, turn = 0;

const cell = (row, name) => table.rows[row][table.columns.indexOf(name)];

// Bokeh would ask for tiles beside the slide, and show the coarser of two zooms. The rows and columns of tiles
// at each zoom are the tags of a source.
const source = Bokeh.Models.get("WMTSTileSource").prototype, childrenOf = source.children_by_tile_xyz;
Object.assign(source, {
  children_by_tile_xyz(...place) {
    return childrenOf.apply(this, place).filter(([x, y, zoom]) => this.is_valid_tile(x, y, zoom));
  },
  is_valid_tile(x, y, zoom) {
    const row = 2 ** zoom - 1 - y, [rows, columns] = this.tags[zoom] || [0, 0];
    return x >= 0 && x < columns && row >= 0 && row < rows;
  },
  get_level_by_extent([left, , right], height, width) {
    const zoom = Math.ceil(this.max_zoom - Math.log2((right - left) / width / devicePixelRatio) - 1e-6);
    return Math.max(0, Math.min(this.max_zoom, zoom));
  },
});

function listSlides() {
  const word = $("#find").value.toLowerCase(), [column, sign] = sorted;
  order = [...table.rows.keys()].filter((i) => `${cell(i, "slide_id")} ${cell(i, "case_id")}`.toLowerCase().includes(word));
  const compare = (a, b) => (a === null) - (b === null) || sign * (typeof a === "number" ? a - b : String(a).localeCompare(b));
  if (column >= 0) order.sort((i, j) => compare(table.rows[i][column], table.rows[j][column]));
  $("#list thead").replaceChildren(make("tr"));
  table.columns.forEach((name, i) => {
    const head = make("th", name + (i === column ? (sign > 0 ? " ▲" : " ▼") : ""));
    head.onclick = () => { sorted = [i, i === column ? -sign : 1]; listSlides(); };
    $("#list thead tr").append(head);
  });
  listFrom(0);
}

// Only the rows from `first` to `last` are drawn, because a browser needs seconds for thousands of them.
function listFrom(place) {
  first = last = Math.max(0, place - STEP / 2);
  $("#list tbody").replaceChildren();
  listMore();
}

function listMore(above = false) {
  const list = $("#list"), height = list.scrollHeight, end = above ? first : last + STEP;
  const rows = order.slice(above ? Math.max(0, first - STEP) : last, end).map(rowOf);
  $("#list tbody")[above ? "prepend" : "append"](...rows);
  if (above) {
    first -= rows.length;
    list.scrollTop += list.scrollHeight - height; // what is seen stays where it is
  } else last += rows.length;
}

function rowOf(i) {
  const row = make("tr", "", `${i === current ? "current" : ""} ${cell(i, "status")}`);
  row.append(...table.rows[i].map((value) => make("td", shown(value, 3), typeof value === "number" ? "number" : "")));
  row.onclick = () => show(i);
  row.dataset.slide = i;
  return row;
}

function move(step) {
  const place = order.indexOf(current) + step;
  if (place >= 0 && place < order.length) show(order[place]);
}

function mark(number) {
  const place = order.indexOf(number);
  current = number;
  if (place >= 0 && (place < first || place >= last)) listFrom(place);
  $("#list tr.current")?.classList.remove("current");
  const row = $(`#list tr[data-slide="${number}"]`);
  row?.classList.add("current");
  row?.scrollIntoView({ block: "nearest" });
}

function fill(element, pairs) {
  element.replaceChildren(...pairs.map(([name, value]) => {
    const row = make("tr");
    row.append(make("th", name), make("td", shown(value)));
    return row;
  }));
}

async function show(number, place = null) {
  const mine = ++turn;
  mark(number);
  const page = await get(`slides/${number}.json`).catch((error) => ({ id: table.rows[number][0], facts: [], notes: [], overlays: [], error: error.message }));
  if (mine !== turn) return; // another slide was chosen meanwhile
  document.title = $("#name").textContent = page.id;
  $("#error").textContent = page.error || "";
  $("#notes").textContent = page.notes.join("; ");
  fill($("#facts"), page.facts);
  $("#tile").replaceChildren(make("p", "click one to see its numbers, or press t for the next"));
  views?.clear();
  views = plot = null;
  $("#plot").replaceChildren();
  $("#scale").hidden = true;
  $("#overlays").replaceChildren();
  if (page.plot) await draw(page, mine, place);
  else remember(page.id);
}

async function draw(page, mine, place) {
  const made = await Bokeh.embed.embed_item(page.plot, $("#plot"));
  if (mine !== turn) return made.clear();
  views = made;
  plot = made.roots[0].model;
  made.roots[0].canvas_view.events_el.style.outline = "none"; // Bokeh would frame the slide after a click
  for (const overlay of page.overlays) addOverlay(overlay);
  const tiles = tilesOf()?.data_source;
  tiles?.selected.properties.indices.change.connect(() => showTiles(tiles));
  go(place || [page.size[0] / 2, page.size[1] / 2, 1.05 * Math.max(page.size[0] / plot.inner_width, page.size[1] / plot.inner_height)]);
  const settled = () => { leaveLimit(); showScale(page.mpp); thicken(); remember(page.id); };
  plot.x_range.change.connect(() => { clearTimeout(timer); timer = setTimeout(settled, 100); });
  settled();
}

function addOverlay({ name, label, opacity: usual, attribute, classes }) {
  const renderer = plot.document.get_model_by_name(name), row = make("label", label);
  const slider = Object.assign(make("input"), { type: "range", min: 0, max: 1, step: 0.05, value: opacity[name] ?? usual });
  slider.id = `opacity-${name}`;
  const apply = () => {
    renderer.visible = slider.valueAsNumber > 0;
    for (const glyph of [renderer.glyph, renderer.nonselection_glyph, renderer.selection_glyph]) {
      if (attribute in (glyph?.properties || {})) glyph[attribute] = slider.valueAsNumber;
    }
  };
  slider.oninput = () => { opacity[name] = slider.valueAsNumber; apply(); };
  apply();
  row.append(slider);
  $("#overlays").append(row);
  for (const [text, colour] of Object.entries(classes)) {
    const line = make("span", "", "class"), swatch = make("span", "", "swatch");
    swatch.style.background = colour;
    line.append(swatch, text);
    $("#overlays").append(line);
  }
}

function showTiles(source) {
  const names = Object.keys(source.data).filter((name) => name.startsWith("="));
  $("#tile").replaceChildren(...source.selected.indices.map((i) => {
    const numbers = make("table"), at = ["left", "top"].map((side) => Math.abs(source.data[side][i]));
    fill(numbers, [["x, y (level 0)", at.join(", ")], ...names.map((name) => [name.slice(1), source.data[name][i]])]);
    return numbers;
  }));
}

const tilesOf = () => plot?.document.get_model_by_name("tiles");

// From afar a tile is smaller than a pixel: its frame is then thicker.
function thicken() {
  const renderer = tilesOf(), data = renderer?.data_source.data;
  if (!data?.left.length) return;
  const width = Math.max(2, Math.min(7, 9 - (data.right[0] - data.left[0]) / zoomed()));
  renderer.glyph.line_width = renderer.nonselection_glyph.line_width = width;
}

function nextTile() {
  const source = tilesOf()?.data_source, count = source?.data.left.length;
  if (!count) return;
  const i = ((source.selected.indices[0] ?? -1) + 1) % count, at = (side) => source.data[side][i];
  source.selected.indices = [i];
  go([(at("left") + at("right")) / 2, -(at("top") + at("bottom")) / 2, (3 * (at("right") - at("left"))) / plot.inner_height]);
}

// A place is x, y of the middle in level-0 pixels, and level-0 pixels per pixel of the page.
function go([x, y, zoom]) {
  const width = (plot.inner_width * zoom) / 2, height = (plot.inner_height * zoom) / 2;
  plot.x_range.setv({ start: x - width, end: x + width });
  plot.y_range.setv({ start: -y - height, end: -y + height });
}

const middle = ({ start, end }) => (start + end) / 2;

// At the closest zoom, Bokeh would not move the plot: by rounding, its sides may be less than the least.
function leaveLimit() {
  const tight = ({ start, end, min_interval }) => end - start < 1.0005 * min_interval;
  if ([plot.x_range, plot.y_range].some(tight)) go([middle(plot.x_range), -middle(plot.y_range), 1.001 * zoomed()]);
}

const zoomed = () => (plot.x_range.end - plot.x_range.start) / plot.inner_width;

function showScale(mpp) {
  const most = 150 * zoomed() * mpp, power = 10 ** Math.floor(Math.log10(most)); // micrometres
  const length = [5, 2, 1].find((step) => step * power <= most) * power;
  $("#scale").hidden = !mpp;
  $("#scale").style.width = `${length / mpp / zoomed()}px`;
  $("#scale").textContent = length < 1000 ? `${+length.toPrecision(1)} µm` : `${length / 1000} mm`;
}

function remember(id) {
  const parts = [encodeURIComponent(id)];
  if (plot) {
    parts.push(middle(plot.x_range).toFixed(1), (-middle(plot.y_range)).toFixed(1), zoomed().toPrecision(6));
  }
  history.replaceState(null, "", `#${parts.join("/")}`);
}

function follow() {
  const [id, ...place] = location.hash.slice(1).split("/"), numbers = place.map(Number);
  const number = table.rows.findIndex((row) => encodeURIComponent(row[0]) === id);
  const valid = numbers.length === 3 && numbers.every(Number.isFinite) && numbers[2] > 0;
  show(number < 0 ? order[0] : number, valid && number >= 0 ? numbers : null);
}

onkeydown = (event) => {
  if (event.target.type === "search" || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "n") move(1);
  if (event.key === "p") move(-1);
  if (event.key === "t") nextTile();
};
onhashchange = follow;
$("#find").oninput = listSlides;
$("#list").onscroll = ({ target }) => {
  if (target.scrollTop + target.clientHeight > target.scrollHeight - 300) listMore();
  if (target.scrollTop < 300 && first > 0) listMore(true);
};
get("slides.json").then((found) => {
  table = found;
  $("#title").textContent = `${found.title}: ${found.rows.length} slides`;
  listSlides();
  if (found.rows.length) follow();
}, (error) => { $("#error").textContent = error.message; });
