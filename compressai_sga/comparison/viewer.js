// SPDX-License-Identifier: Apache-2.0
// The picture viewer of a comparison report (page.html): two pictures of one image in one place, a border
// that wipes between them, one zoom and one centre for both.
//
// A picture's file stays in its own <script type="text/plain"> as a data URI and is decoded when it is shown.
// Zoom counts pixels of the screen for each pixel of the picture, so 1 is exact on every display.
"use strict";
addEventListener("DOMContentLoaded", () => {
  const root = document.getElementById("viewer");
  const { pictures } = JSON.parse(document.getElementById("report").textContent);
  if (!pictures.length) return;
  root.hidden = false;

  const part = (name) => root.querySelector(`[data-part="${name}"]`);
  const stage = part("stage"), handle = part("handle"), canvas = part("canvas"), status = part("status");
  const images = [...new Set(pictures.map((picture) => picture.image))];
  const sides = ["left", "right"];
  const LARGEST = 64;
  const KEYS = ["slider", "difference", "x", "y"];
  const state = { image: images[0], left: 0, right: 0, zoom: "fit", x: 0, y: 0, slider: 50, difference: 0 };
  const shown = { left: null, right: null };  // the <img> of each side
  let flipped = false, stamp = 0, writing = 0, compared = "", levels = "";

  const clamp = (value, low, high) => Math.min(Math.max(value, low), high);
  const number = (text, otherwise) => text && Number.isFinite(Number(text)) ? Number(text) : otherwise;

  // --- which pictures ---------------------------------------------------------------------------------------
  const choices = (image) => pictures.flatMap((picture, i) => picture.image === image ? [i] : []);

  // The picture that was asked for, else the same codec's next in rate, else null.
  function find(image, { label, point, bpp = null }) {
    const same = choices(image).filter((i) => pictures[i].label === label);
    const exact = same.find((i) => pictures[i].point === point);
    if (exact !== undefined) return exact;
    const distance = (i) => Math.abs((pictures[i].bpp ?? 0) - (bpp ?? 0));
    return same.length ? same.reduce((best, i) => distance(i) < distance(best) ? i : best) : null;
  }

  function byDefault(image, side) {
    const all = choices(image), coded = all.find((i) => pictures[i].label !== "original");
    const original = find(image, { label: "original" });
    return side === "left" ? original ?? all[0] : coded ?? all[0];
  }

  const named = ({ label, point }) => point ? `${label}, ${point}` : label;

  // Changes the image; each side keeps its codec and point where this image has them.
  function setImage(image, wanted = { left: pictures[state.left], right: pictures[state.right] }) {
    state.image = image;
    const missing = [];
    for (const side of sides) {
      const found = wanted[side] ? find(image, wanted[side]) : null;
      state[side] = found ?? byDefault(image, side);
      const { label, point } = pictures[state[side]];
      if (wanted[side] && (label !== wanted[side].label || point !== wanted[side].point)) {
        missing.push(`${named(wanted[side])} is missing for this image; shown: ${named(pictures[state[side]])}.`);
      }
    }
    status.textContent = missing.join(" ");
    fillSelects();
  }

  const element = (tag, properties) => Object.assign(document.createElement(tag), properties);
  const option = (value, textContent) => element("option", { value, textContent });

  function fillSelects() {
    part("image").value = images.indexOf(state.image);
    for (const side of sides) {
      const groups = new Map();
      for (const i of choices(state.image)) {
        const { label, point, bpp } = pictures[i];
        if (!groups.has(label)) groups.set(label, element("optgroup", { label }));
        const rate = bpp === null ? "" : ` · ${bpp.toFixed(4)} bpp`;
        groups.get(label).append(option(i, named({ label, point }) + rate));
      }
      part(side).replaceChildren(...[...groups.values()].flatMap(
        (group) => group.children.length === 1 && group.label === "original" ? [...group.children] : [group]));
      part(side).value = state[side];
    }
  }

  // Decodes what is not shown yet, then draws; a later call overtakes an earlier one.
  async function load() {
    const mine = ++stamp;
    const wanted = sides.map((side) => {
      if (shown[side]?.index === state[side]) return shown[side];
      const img = element("img", { index: state[side], alt: named(pictures[state[side]]), draggable: false });
      img.src = document.getElementById(`picture-${state[side]}`).textContent;
      return img;
    });
    try {
      await Promise.all(wanted.map((img) => img.decode()));
    } catch (error) {
      if (mine === stamp) status.textContent = `A picture cannot be decoded: ${error.message}`;
      return;
    }
    if (mine !== stamp) return;
    sides.forEach((side, i) => {
      shown[side] = wanted[i];
      part(`${side}-layer`).replaceChildren(wanted[i]);
    });
    draw();
  }

  // --- where and how large ----------------------------------------------------------------------------------
  function geometry() {
    const both = sides.map((side) => pictures[state[side]]);
    const width = Math.max(...both.map((p) => p.width)), height = Math.max(...both.map((p) => p.height));
    const box = stage.getBoundingClientRect(), dpr = devicePixelRatio;
    const fit = Math.min(box.width / width, box.height / height) * dpr;
    const zoom = state.zoom === "fit" ? fit : state.zoom;
    return { width, height, box, dpr, fit, zoom, scale: zoom / dpr };
  }

  const fits = ({ width, height, box, scale }) =>
    width * scale <= box.width + 0.5 && height * scale <= box.height + 0.5;

  // Keeps the stage filled; what is smaller than the stage stays in its middle.
  function settle() {
    const { width, height, box, scale } = geometry();
    const within = (centre, size, view) => size <= view ? size / 2 : clamp(centre, view / 2, size - view / 2);
    state.x = within(state.x, width, box.width / scale);
    state.y = within(state.y, height, box.height / scale);
  }

  function draw() {
    const first = pictures[state.left];
    stage.style.setProperty("--ratio", first.width / first.height);
    settle();
    const at = geometry(), { box, dpr, scale } = at;
    // On whole pixels of the screen, or 1:1 would be blurred.
    const place = (origin, size, centre) => Math.round((origin + size / 2 - centre * scale) * dpr) / dpr - origin;
    const x = place(box.left, box.width, state.x), y = place(box.top, box.height, state.y);
    for (const layer of [shown.left, shown.right, canvas]) {
      if (layer) layer.style.transform = `translate(${x}px, ${y}px) scale(${scale})`;
    }
    stage.classList.toggle("near", at.zoom >= 2);
    const clips = [`inset(0 ${100 - state.slider}% 0 0)`, `inset(0 0 0 ${state.slider}%)`];
    if (flipped) clips.reverse();
    sides.forEach((side, i) => { part(`${side}-layer`).style.clipPath = clips[i]; });
    handle.style.left = `${state.slider}%`;
    handle.setAttribute("aria-valuenow", Math.round(state.slider));
    handle.setAttribute("aria-valuetext", `${Math.round(state.slider)} % left`);
    drawDifference();
    drawTexts(at);
  }

  function drawDifference() {
    const on = state.difference > 0;
    canvas.hidden = !on;
    handle.classList.toggle("off", on);
    if (!on || !shown.left || !shown.right) return;
    const key = [shown.left.index, shown.right.index, state.difference].join();
    if (key === compared) return;
    const width = Math.min(shown.left.naturalWidth, shown.right.naturalWidth);
    const height = Math.min(shown.left.naturalHeight, shown.right.naturalHeight);
    Object.assign(canvas, { width, height });
    const context = canvas.getContext("2d", { willReadFrequently: true });
    const [a, b] = sides.map((side) => {
      context.drawImage(shown[side], 0, 0);
      return context.getImageData(0, 0, width, height);
    });
    let sum = 0, largest = 0;
    for (let i = 0; i < a.data.length; i++) {
      if (i % 4 === 3) continue;  // alpha
      const difference = Math.abs(a.data[i] - b.data[i]);
      sum += difference;
      largest = Math.max(largest, difference);
      a.data[i] = difference * state.difference;  // clamped to 255 by the array
    }
    context.putImageData(a, 0, 0);
    compared = key;
    levels = `mean ${(sum / (3 * width * height)).toFixed(2)}, largest ${largest} of 255`;
  }

  function drawTexts({ zoom }) {
    const size = ({ width, height }) => `${width} × ${height}`;
    const alike = size(pictures[state.left]) === size(pictures[state.right]);
    const order = flipped ? [...sides].reverse() : sides;
    sides.forEach((side, i) => {
      const picture = pictures[shown[order[i]]?.index ?? state[order[i]]], caption = part(`${side}-caption`);
      const name = element("b", { textContent: named(picture) });
      const facts = [...picture.facts, ...(alike ? [] : [size(picture)])];
      caption.replaceChildren(name, ...facts.flatMap((fact) => [" ", element("span", { textContent: fact })]));
      caption.style.setProperty("--colour", picture.colour ?? "var(--original)");
    });
    const percent = zoom < 1 ? `${Math.round(100 * zoom)} %` : `${Number(zoom.toFixed(2))}×`;
    const difference = state.difference ? `|left − right| × ${state.difference}: ${levels} · ` : "";
    part("zoom-text").textContent = `${difference}zoom ${percent}`;
    for (const button of root.querySelectorAll("[data-zoom]")) {
      button.setAttribute("aria-pressed", button.dataset.zoom === String(state.zoom));
    }
    part("difference").value = state.difference;
  }

  // --- the view in the address --------------------------------------------------------------------------------
  function write() {
    const left = pictures[state.left], right = pictures[state.right];
    const view = { image: state.image, left: left.label, "left-point": left.point, right: right.label,
      "right-point": right.point, zoom: state.zoom === "fit" ? "fit" : Number(state.zoom.toFixed(4)) };
    for (const key of KEYS) view[key] = Number(state[key].toFixed(2));
    history.replaceState(null, "", `#${new URLSearchParams(view)}`);
  }

  // The view of the address; false where the address holds none.
  function read() {
    const view = new URLSearchParams(location.hash.slice(1));
    if (!view.has("image")) return false;
    const image = images.includes(view.get("image")) ? view.get("image") : images[0];
    const wanted = (side) => view.has(side) ? { label: view.get(side), point: view.get(`${side}-point`) ?? "" } : null;
    setImage(image, { left: wanted("left"), right: wanted("right") });
    const zoom = number(view.get("zoom"), 0);
    state.zoom = zoom > 0 ? clamp(zoom, 1 / LARGEST, LARGEST) : "fit";
    const { width, height } = pictures[state.left];
    Object.assign(state, { x: number(view.get("x"), width / 2), y: number(view.get("y"), height / 2),
      slider: clamp(number(view.get("slider"), 50), 0, 100),
      difference: clamp(number(view.get("difference"), 0), 0, 255) });
    return true;
  }

  // After each change by the reader. Browsers allow few changes of the address, so it follows a little later.
  function changed({ pictures: other = false } = {}) {
    if (other) load(); else draw();
    clearTimeout(writing);
    writing = setTimeout(write, 200);
  }

  // --- what the reader does -----------------------------------------------------------------------------------
  // Zooms and keeps what lies under the point (pixels of the page; the middle by default) where it is.
  function zoomTo(zoom, point = null) {
    const { box, scale, fit, dpr } = geometry();
    const dx = point ? point.x - box.left - box.width / 2 : 0, dy = point ? point.y - box.top - box.height / 2 : 0;
    const x = state.x + dx / scale, y = state.y + dy / scale;
    state.zoom = zoom === "fit" ? "fit" : clamp(zoom, Math.min(fit, 1), LARGEST);
    if (state.zoom !== "fit") {
      state.x = x - dx / (state.zoom / dpr);
      state.y = y - dy / (state.zoom / dpr);
    }
    changed();
  }
  const zoomBy = (factor, point) => {
    const { zoom, fit } = geometry();
    zoomTo(fit < 1 && zoom * factor <= fit ? "fit" : zoom * factor, point);
  };
  const pan = (dx, dy) => {
    const { scale } = geometry();
    state.x -= dx / scale;
    state.y -= dy / scale;
    changed();
  };
  const slide = (to) => {
    state.slider = clamp(to, 0, 100);
    changed();
  };
  const step = (by) => {
    setImage(images[(images.indexOf(state.image) + by + images.length) % images.length]);
    changed({ pictures: true });
  };
  const swap = () => {
    [state.left, state.right] = [state.right, state.left];
    fillSelects();
    changed({ pictures: true });
  };
  const setDifference = (factor) => {
    state.difference = factor;
    changed();
  };

  images.forEach((image, i) => part("image").append(option(i, image)));
  for (const name of ["previous", "next", "image"]) part(name).disabled = images.length < 2;
  part("image").addEventListener("change", (event) => step(Number(event.target.value) - images.indexOf(state.image)));
  part("previous").addEventListener("click", () => step(-1));
  part("next").addEventListener("click", () => step(1));
  part("swap").addEventListener("click", swap);
  part("difference").addEventListener("change", (event) => setDifference(Number(event.target.value)));
  for (const side of sides) {
    part(side).addEventListener("change", (event) => {
      state[side] = Number(event.target.value);
      status.textContent = "";
      changed({ pictures: true });
    });
  }
  for (const button of root.querySelectorAll("[data-zoom]")) {
    button.addEventListener("click", () => zoomTo(button.dataset.zoom === "fit" ? "fit" : Number(button.dataset.zoom)));
  }

  stage.addEventListener("wheel", (event) => {
    const { zoom, fit } = geometry();
    if (event.deltaY > 0 && zoom <= Math.min(fit, 1)) return;  // nothing smaller: the page scrolls
    event.preventDefault();
    zoomBy(Math.exp(-event.deltaY * (event.deltaMode === 1 ? 0.05 : 0.002)), { x: event.clientX, y: event.clientY });
  }, { passive: false });

  const pointers = new Map();
  let wiping = false;
  stage.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    event.preventDefault();
    handle.focus({ preventScroll: true });
    stage.setPointerCapture(event.pointerId);
    // Where all is in sight there is nothing to move, and every drag wipes.
    wiping = event.target === handle || (fits(geometry()) && state.difference === 0);
    pointers.set(event.pointerId, { x: event.clientX, y: event.clientY });
    stage.classList.add("dragged");
  });
  stage.addEventListener("pointermove", (event) => {
    const before = pointers.get(event.pointerId);
    if (!before) return;
    const now = { x: event.clientX, y: event.clientY };
    const other = [...pointers].find(([id]) => id !== event.pointerId)?.[1];
    pointers.set(event.pointerId, now);
    const { left, width } = stage.getBoundingClientRect();
    if (other) {
      const apart = (point) => Math.hypot(point.x - other.x, point.y - other.y) || 1;
      zoomBy(apart(now) / apart(before), { x: (now.x + other.x) / 2, y: (now.y + other.y) / 2 });
      pan((now.x - before.x) / 2, (now.y - before.y) / 2);
    } else if (wiping) slide(100 * (now.x - left) / width);
    else pan(now.x - before.x, now.y - before.y);
  });
  for (const name of ["pointerup", "pointercancel"]) {
    stage.addEventListener(name, (event) => {
      pointers.delete(event.pointerId);
      wiping = false;
      if (!pointers.size) stage.classList.remove("dragged");
    });
  }

  const arrows = { ArrowLeft: [1, 0], ArrowRight: [-1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };
  const keys = {
    Home: () => slide(0), End: () => slide(100), PageUp: () => step(-1), PageDown: () => step(1),
    "+": () => zoomBy(2 ** 0.5), "=": () => zoomBy(2 ** 0.5), "-": () => zoomBy(2 ** -0.5), 0: () => zoomTo("fit"),
    1: () => zoomTo(1), 2: () => zoomTo(2), 4: () => zoomTo(4), 8: () => zoomTo(8), s: swap,
    d: () => setDifference(state.difference ? 0 : 8),
  };
  function flip(to) {
    flipped = to;
    draw();
  }
  stage.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const arrow = arrows[event.key];
    if (arrow && event.shiftKey) pan(arrow[0] * 60, arrow[1] * 60);
    else if (arrow) slide(state.slider - 2 * (arrow[0] - arrow[1]));
    else if (event.key === " ") flip(true);
    else if (keys[event.key]) keys[event.key]();
    else return;
    event.preventDefault();
  });
  stage.addEventListener("keyup", (event) => { if (event.key === " ") flip(false); });
  handle.addEventListener("blur", () => flip(false));

  // A click on a point of a curve: its picture to the right.
  document.addEventListener("show-picture", ({ detail }) => {
    const found = find(state.image, detail);
    if (found === null || pictures[found].point !== detail.point) return;
    state.right = found;
    fillSelects();
    changed({ pictures: true });
    root.scrollIntoView({ block: "start" });
  });
  addEventListener("hashchange", () => { if (read()) load(); });
  new ResizeObserver(() => draw()).observe(stage);

  if (read()) {
    load();
    root.scrollIntoView({ block: "start" });
  } else {
    setImage(images[0], { left: null, right: null });
    Object.assign(state, { x: pictures[state.left].width / 2, y: pictures[state.left].height / 2 });
    load();
  }
});
