// The page of sam4ir report: hover values of charts, and viewers that compare two views of an image.
"use strict";

const MOST_ZOOM = 32;
const ZOOM_STEP = 1.5;
const PAN_STEP = 40;

/** Shows the values of all curves at the iteration that is nearest to the pointer, or chosen by the arrow keys. */
class Chart {
  constructor(svg) {
    this.svg = svg;
    this.curves = JSON.parse(svg.dataset.curves);
    this.iterations = [...new Set(this.curves.flatMap((curve) => curve.points.map((point) => point[0])))];
    this.iterations.sort((a, b) => a - b);
    this.chosen = -1;
    svg.addEventListener("pointermove", (event) => this.follow(event));
    svg.addEventListener("pointerdown", (event) => this.follow(event));
    svg.addEventListener("pointerleave", () => this.hide());
    svg.addEventListener("blur", () => this.hide());
    svg.addEventListener("keydown", (event) => this.press(event));
  }

  follow(event) {
    const box = this.svg.getBoundingClientRect();
    const x = ((event.clientX - box.left) / box.width) * this.svg.viewBox.baseVal.width;
    this.show(this.nearest((iteration) => Math.abs(this.column(iteration) - x)));
  }

  press(event) {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (event.key === "Escape") this.hide();
    if (!step) return;
    event.preventDefault();
    this.show(Math.min(Math.max(this.chosen + step, 0), this.iterations.length - 1));
  }

  /** The number of the iteration with the least distance. */
  nearest(distance) {
    let best = 0;
    this.iterations.forEach((iteration, number) => {
      if (distance(iteration) < distance(this.iterations[best])) best = number;
    });
    return best;
  }

  /** The column of an iteration: that of a curve's point there. */
  column(iteration) {
    for (const curve of this.curves) {
      const number = curve.points.findIndex((point) => point[0] === iteration);
      if (number >= 0) return curve.at[number][0];
    }
    return 0;
  }

  show(number) {
    if (number === this.chosen) return;
    this.hide();
    this.chosen = number;
    const iteration = this.iterations[number];
    const column = this.column(iteration);
    const { width, height } = this.svg.viewBox.baseVal;
    this.cursor = document.createElementNS("http://www.w3.org/2000/svg", "line");
    for (const [name, value] of Object.entries({ x1: column, x2: column, y1: 10, y2: height - 34, class: "cursor" })) {
      this.cursor.setAttribute(name, value);
    }
    this.svg.append(this.cursor);
    this.bubble = document.createElement("div");
    this.bubble.className = "bubble";
    this.bubble.setAttribute("role", "status");
    this.line(`iteration ${iteration.toLocaleString("en")}`);
    for (const curve of this.curves) {
      const point = curve.points.find((each) => each[0] === iteration);
      if (point) this.line(`${curve.name}: ${point[1]}`);
    }
    const figure = this.svg.parentElement;
    figure.append(this.bubble);
    const box = this.svg.getBoundingClientRect();
    const left = (column / width) * box.width + 12;
    const room = figure.clientWidth - this.bubble.offsetWidth;
    const turned = left > room ? left - 24 - this.bubble.offsetWidth : left;
    this.bubble.style.left = `${Math.max(0, Math.min(turned, room))}px`;
    this.bubble.style.top = `${box.top - figure.getBoundingClientRect().top + 8}px`;
  }

  line(text) {
    const line = document.createElement("div");
    line.textContent = text;
    this.bubble.append(line);
  }

  hide() {
    this.chosen = -1;
    if (this.cursor) this.cursor.remove();
    if (this.bubble) this.bubble.remove();
  }
}

/** Compares two views of an image: the left one above the right one, cut at the divider; both move together. */
class Viewer {
  constructor(root) {
    this.stage = root.querySelector(".stage");
    this.views = [...this.stage.querySelectorAll("img")];
    this.left = root.querySelector("[data-role=left]");
    this.right = root.querySelector("[data-role=right]");
    this.names = { left: root.querySelector(".side.left"), right: root.querySelector(".side.right") };
    this.divider = root.querySelector(".divider");
    this.slider = root.querySelector(".slider");
    this.output = root.querySelector("output");
    this.pixels = Number(root.dataset.width);
    this.zoom = 1;
    this.x = 0;
    this.y = 0;
    this.pointers = new Map();
    this.drag = null;
    this.slider.addEventListener("input", () => this.draw());
    for (const choice of [this.left, this.right]) choice.addEventListener("change", () => this.draw());
    root.querySelector("[data-role=in]").addEventListener("click", () => this.zoomBy(ZOOM_STEP));
    root.querySelector("[data-role=out]").addEventListener("click", () => this.zoomBy(1 / ZOOM_STEP));
    root.querySelector("[data-role=fit]").addEventListener("click", () => this.zoomTo(1));
    root.querySelector("[data-role=actual]").addEventListener("click", () => this.zoomTo(this.pixels / this.width));
    root.querySelector("[data-role=swap]").addEventListener("click", () => this.swap());
    this.stage.addEventListener("keydown", (event) => this.press(event));
    this.stage.addEventListener("wheel", (event) => this.wheel(event), { passive: false });
    this.stage.addEventListener("dblclick", (event) => this.zoomBy(2, this.place(event)));
    this.stage.addEventListener("pointerdown", (event) => this.down(event));
    this.stage.addEventListener("pointermove", (event) => this.move(event));
    for (const name of ["pointerup", "pointercancel"]) this.stage.addEventListener(name, (event) => this.up(event));
    new ResizeObserver(() => this.draw()).observe(this.stage);
    this.draw();
  }

  get width() {
    return this.stage.clientWidth || 1;
  }

  get height() {
    return this.stage.clientHeight || 1;
  }

  swap() {
    [this.left.value, this.right.value] = [this.right.value, this.left.value];
    this.draw();
  }

  /** The place of an event in the stage. */
  place(event) {
    const box = this.stage.getBoundingClientRect();
    return { x: event.clientX - box.left, y: event.clientY - box.top };
  }

  zoomBy(factor, at) {
    this.zoomTo(this.zoom * factor, at);
  }

  /** Zooms so that the point `at` of the stage, its middle by default, stays where it is. */
  zoomTo(zoom, at = { x: this.width / 2, y: this.height / 2 }) {
    const bounded = Math.min(Math.max(zoom, 1), MOST_ZOOM);
    this.x = at.x - ((at.x - this.x) * bounded) / this.zoom;
    this.y = at.y - ((at.y - this.y) * bounded) / this.zoom;
    this.zoom = bounded;
    this.draw();
  }

  panBy(x, y) {
    this.x += x;
    this.y += y;
    this.draw();
  }

  press(event) {
    const pans = { ArrowLeft: [1, 0], ArrowRight: [-1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };
    if (event.key === "+" || event.key === "=") this.zoomBy(ZOOM_STEP);
    else if (event.key === "-") this.zoomBy(1 / ZOOM_STEP);
    else if (event.key === "0") this.zoomTo(1);
    else if (pans[event.key] && this.zoom > 1) this.panBy(...pans[event.key].map((step) => step * PAN_STEP));
    else return;
    event.preventDefault();
  }

  /** Zooms by the wheel with Ctrl or Shift, as a pinch on a touch pad does; without them the page scrolls. */
  wheel(event) {
    if (!event.ctrlKey && !event.shiftKey) return;
    event.preventDefault();
    this.zoomBy(Math.exp(-(event.deltaY || event.deltaX) / 300), this.place(event));
  }

  down(event) {
    this.stage.setPointerCapture(event.pointerId);
    const place = this.place(event);
    this.pointers.set(event.pointerId, place);
    const onDivider = Math.abs(place.x - this.cut) < 22;
    this.drag = this.zoom === 1 || onDivider ? "divider" : "pan";
    if (this.drag === "divider" && !onDivider && event.pointerType === "touch") return;
    if (this.drag === "divider" && this.pointers.size === 1) this.cutAt(place.x);
  }

  move(event) {
    const before = this.pointers.get(event.pointerId);
    if (!before) return;
    const place = this.place(event);
    if (this.pointers.size === 2) this.pinch(event.pointerId, before, place);
    else if (this.drag === "divider") this.cutAt(place.x);
    else this.panBy(place.x - before.x, place.y - before.y);
    this.pointers.set(event.pointerId, place);
  }

  up(event) {
    this.pointers.delete(event.pointerId);
    this.drag = this.zoom === 1 ? "divider" : "pan";
  }

  /** Zooms and pans by two fingers, of which one moved. */
  pinch(moved, before, place) {
    const other = [...this.pointers].find(([id]) => id !== moved)[1];
    const distance = (a) => Math.max(Math.hypot(a.x - other.x, a.y - other.y), 1);
    const middle = { x: (place.x + other.x) / 2, y: (place.y + other.y) / 2 };
    this.x += (place.x - before.x) / 2;
    this.y += (place.y - before.y) / 2;
    this.zoomBy(distance(place) / distance(before), middle);
  }

  get cut() {
    return (Number(this.slider.value) / 100) * this.width;
  }

  cutAt(x) {
    this.slider.value = Math.min(Math.max((100 * x) / this.width, 0), 100);
    this.draw();
  }

  draw() {
    this.x = Math.min(0, Math.max(this.x, this.width * (1 - this.zoom)));
    this.y = Math.min(0, Math.max(this.y, this.height * (1 - this.zoom)));
    const left = Number(this.left.value);
    const right = Number(this.right.value);
    const share = Math.min(Math.max((this.cut - this.x) / (this.zoom * this.width), 0), 1);
    this.views.forEach((view, number) => {
      view.hidden = number !== left && number !== right;
      view.style.transform = `translate(${this.x}px, ${this.y}px) scale(${this.zoom})`;
      view.style.zIndex = number === left ? 1 : 0;
      view.style.clipPath = number === left && left !== right ? `inset(0 ${100 * (1 - share)}% 0 0)` : "none";
    });
    this.names.left.textContent = this.left.selectedOptions[0].textContent;
    this.names.right.textContent = this.right.selectedOptions[0].textContent;
    this.divider.style.left = `${this.cut}px`;
    const scale = (this.zoom * this.width) / this.pixels;
    this.output.textContent = `${Math.round(100 * scale)} %`;
    this.stage.classList.toggle("zoomed", this.zoom > 1);
    this.stage.classList.toggle("pixels", scale >= 2);
    this.slider.setAttribute("aria-valuetext", `${Math.round(Number(this.slider.value))} % ${this.names.left.textContent}`);
  }
}

for (const svg of document.querySelectorAll("svg[data-curves]")) new Chart(svg);
for (const root of document.querySelectorAll(".viewer")) new Viewer(root);
/** Opens the group of images that holds the target of a link. */
function openTarget() {
  const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  const group = target && target.closest("details");
  if (!group || group.open) return;
  group.open = true;
  target.scrollIntoView();
}
addEventListener("hashchange", openTarget);
openTarget();
document.documentElement.dataset.ready = "true";
