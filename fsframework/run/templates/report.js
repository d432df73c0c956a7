"use strict";
const data = JSON.parse(document.getElementById("report-data").textContent);
const all = (selector, root = document) => [...root.querySelectorAll(selector)];
const one = (selector, root = document) => root.querySelector(selector);

// One tooltip for everything.
const tip = one("#tip");
function showTip(event, text) {
  tip.textContent = text;
  tip.hidden = false;
  const box = tip.getBoundingClientRect();
  const x = Math.min(event.clientX + 14, innerWidth - box.width - 8);
  const below = event.clientY + 18 + box.height < innerHeight;
  tip.style.left = Math.max(8, x) + "px";
  tip.style.top = (below ? event.clientY + 18 : event.clientY - box.height - 12) + "px";
}
const hideTip = () => { tip.hidden = true; };
addEventListener("scroll", hideTip, { passive: true });
all("[data-tip]").forEach((node) => {
  node.addEventListener("pointermove", (event) => showTip(event, node.dataset.tip));
  node.addEventListener("pointerleave", hideTip);
  node.addEventListener("focus", () => {
    const box = node.getBoundingClientRect();
    if (node.matches(":focus-visible")) showTip({ clientX: box.right, clientY: box.top }, node.dataset.tip);
  });
  node.addEventListener("blur", hideTip);
});

// Summary: sort, copy.
const summary = one("#summary-table");
if (summary) {
  const body = one("tbody", summary);
  all("th button", summary).forEach((button) => button.addEventListener("click", () => {
    const head = button.closest("th");
    const column = head.cellIndex;
    const descending = head.getAttribute("aria-sort") === "ascending";
    all("th", summary).forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", descending ? "descending" : "ascending");
    const value = (row) => row.cells[column].dataset.value;
    const compare = (a, b) => {
      const [x, y] = [value(a), value(b)];
      if (x === "" || y === "") return (x === "") - (y === ""); // not measured: last in both directions
      const [p, q] = [Number(x), Number(y)];
      const order = Number.isNaN(p) || Number.isNaN(q) ? x.localeCompare(y, "en", { numeric: true }) : (p > q) - (p < q);
      return descending ? -order : order;
    };
    all("tr", body).sort(compare).forEach((row) => body.append(row));
  }));
  const order = () => all("tr", body).filter((row) => !row.hidden).map((row) => Number(row.dataset.row));
  const texts = {
    csv: () => [data.csv[0], ...order().map((run) => data.csv[run + 1])].join("\n") + "\n",
    latex: () => data.latex.head + order().map((run) => data.latex.rows[run]).join("") + data.latex.tail,
  };
  all("[data-copy]").forEach((button) => button.addEventListener("click", () => copy(button, texts[button.dataset.copy]())));
}
async function copy(button, text) {
  let done = true;
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const area = document.createElement("textarea"); // where the page may not use the clipboard directly
    area.value = text;
    document.body.append(area);
    area.select();
    done = document.execCommand("copy");
    area.remove();
  }
  button.dataset.label ??= button.textContent;
  button.textContent = done ? "Copied" : "Copying was refused";
  setTimeout(() => { button.textContent = button.dataset.label; }, 1500);
}
all("[data-copy-text]").forEach((button) => button.addEventListener("click", () => {
  copy(button, one("pre", button.parentElement).textContent);
}));

// Filter: a run stays if every word occurs in its names; everything of the others is hidden, in all sections.
const filter = one("#filter");
let kept = data.words.map(() => true);
function applyFilter() {
  const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
  kept = data.words.map((text) => words.every((word) => text.includes(word)));
  all("[data-row]").forEach((node) => {
    const stays = kept[Number(node.dataset.row)];
    if (node instanceof SVGElement) node.classList.toggle("shadow", !stays);
    else node.hidden = !stays;
  });
  one("#filter-count").textContent = words.length ? `${kept.filter(Boolean).length} of ${kept.length} runs, in all sections` : "";
}
if (filter) {
  filter.addEventListener("input", applyFilter);
  if (filter.value) applyFilter(); // a browser may fill it in again after a reload
}

// Pareto plot: choose the axes.
function showPlot() {
  const [x, y] = [one("#pareto-x").value, one("#pareto-y").value];
  all(".pareto-plot").forEach((plot) => { plot.hidden = plot.dataset.x !== x || plot.dataset.y !== y; });
}
all("#pareto-x, #pareto-y").forEach((select) => select.addEventListener("change", showPlot));

// Heat maps and curves: read values off the pictures.
const percent = (share) => `${Math.round(share * 100)} %`;
const digits = (value) => (value === null ? "–" : value.toPrecision(3));
all("[data-heat]").forEach((picture) => {
  const grid = data.runs[picture.dataset.heat];
  picture.addEventListener("pointermove", (event) => {
    const box = picture.getBoundingClientRect();
    const step = Math.min(grid.steps - 1, Math.max(0, Math.floor((event.clientX - box.left) / box.width * grid.steps)));
    const site = Math.min(grid.sites.length - 1, Math.max(0, Math.floor((event.clientY - box.top) / box.height * grid.sites.length)));
    const share = grid.reuse[site][step];
    const lines = [`${grid.sites[site]} · step ${step} · timestep ${digits(grid.timesteps[step])}`];
    if (share === null) lines.push("not visited");
    else {
      lines.push(`reused in ${percent(share)} of ${grid.videos} videos` + (share > 0 ? ` · mean lag ${digits(grid.lag[site][step])}` : ""));
      if (grid.eliminated[site][step]) lines.push(`eliminated in ${percent(grid.eliminated[site][step])}`);
      if (grid.forced[site][step]) lines.push(`recompute forced in ${percent(grid.forced[site][step])}: nothing was cached`);
    }
    showTip(event, lines.join("\n"));
  });
  picture.addEventListener("pointerleave", hideTip);
});
all("[data-panel]").forEach((panel) => {
  const [run, site] = panel.dataset.panel.split(":").map(Number);
  const grid = data.runs[run];
  panel.addEventListener("pointermove", (event) => {
    const box = panel.getBoundingClientRect();
    const inside = ((event.clientX - box.left) / box.width * data.panel.width - data.panel.left) / (data.panel.width - data.panel.left - data.panel.right);
    const step = Math.min(grid.steps - 1, Math.max(0, Math.floor(inside * grid.steps)));
    const lines = [`${grid.sites[site]} · step ${step}`];
    for (const [branch, curves] of Object.entries(grid.curves)) {
      const prefix = Object.keys(grid.curves).length > 1 ? `${branch}: ` : "";
      const count = curves.count[site][step];
      lines.push(prefix + (count ? `distance ${digits(curves.distance[site][step])} (${count} videos)` : "distance not measured"));
      if (curves.threshold[site][step] !== null) lines.push(`${prefix}threshold ${digits(curves.threshold[site][step])}`);
    }
    showTip(event, lines.join("\n"));
  });
  panel.addEventListener("pointerleave", hideTip);
});
const bytes = (value) => {
  if (value === null) return "not known";
  const [size, unit] = [[1e9, "GB"], [1e6, "MB"], [1e3, "kB"]].find(([size]) => value >= size) ?? [1, "B"];
  return `${size === 1 ? value : Number((value / size).toPrecision(3))} ${unit}`;
};
all("[data-cache]").forEach((panel) => {
  const { held, most } = data.cache[panel.dataset.cache];
  const { width, left, right } = data.cachePanel;
  panel.addEventListener("pointermove", (event) => {
    const box = panel.getBoundingClientRect();
    const inside = ((event.clientX - box.left) / box.width * width - left) / (width - left - right);
    const step = Math.min(held.length - 1, Math.max(0, Math.floor(inside * held.length)));
    showTip(event, `step ${step}\nheld at its end: ${bytes(held[step])}\nmost within it: ${bytes(most[step])}`);
  });
  panel.addEventListener("pointerleave", hideTip);
});

// Videos: all players show the same frame.
const player = {
  clip: 0, frame: 0, playing: false, videos: [], views: [],
  stage: one("#stage"), scrub: one("#scrub"), counter: one("#frame"), play: one("#play"), difference: one("#difference"),
};
const duration = data.videos.frames / data.videos.fps;

function label(cell) {
  const caption = document.createElement("figcaption");
  const title = document.createElement("b");
  title.textContent = cell.title;
  const text = document.createElement("span");
  text.textContent = cell.text;
  caption.append(title, text);
  return caption;
}
function openClip(number) {
  pause();
  player.clip = number;
  player.videos = [];
  player.views = [];
  player.stage.replaceChildren();
  const byFile = new Map();
  for (const cell of data.videos.clips[number].cells) {
    const figure = document.createElement("figure");
    const video = document.createElement("video");
    Object.assign(video, { muted: true, playsInline: true, preload: "auto", src: data.videos.files[cell.file] });
    video.setAttribute("aria-label", `${cell.title}: ${data.videos.clips[number].prompt}`);
    const smooth = () => video.classList.toggle("large", video.videoWidth > 320);
    video.addEventListener("loadedmetadata", smooth, { once: true });
    video.addEventListener("loadeddata", () => seek(player.frame), { once: true });
    video.addEventListener("seeked", drawDifferences);
    watch(video);
    figure.append(video);
    const view = { video, reference: byFile.get(cell.reference), canvas: null };
    if (cell.run < 0) byFile.set(cell.file, video);
    else {
      figure.className = `of-run run-${cell.run % data.colours}`;
      figure.dataset.row = cell.run;
      figure.hidden = !kept[cell.run];
      if (view.reference) {
        view.canvas = document.createElement("canvas");
        view.canvas.setAttribute("aria-label", `difference of ${cell.title} from the reference`);
        figure.append(view.canvas);
      }
    }
    figure.append(label(cell));
    player.stage.append(figure);
    player.videos.push(video);
    player.views.push(view);
  }
  one("#clip").value = String(number);
  seek(0);
}
// Which frame a player really shows: two players are a moment apart while playing, and frames of different times differ.
function watch(video) {
  if (!video.requestVideoFrameCallback) return;
  const note = (_, shown) => {
    video.shownFrame = Math.round(shown.mediaTime * data.videos.fps);
    drawDifferences();
    video.requestVideoFrameCallback(note);
  };
  video.requestVideoFrameCallback(note);
}
function seek(frame) {
  player.frame = Math.min(data.videos.frames - 1, Math.max(0, frame));
  // The middle of a frame, so that rounding never lands on its neighbour.
  for (const video of player.videos) video.currentTime = (player.frame + 0.5) / data.videos.fps;
  showFrame();
}
function showFrame() {
  player.scrub.value = String(player.frame);
  player.counter.textContent = `frame ${player.frame + 1} of ${data.videos.frames}`;
}
function pause() {
  player.playing = false;
  player.videos.forEach((video) => video.pause());
  if (player.play) player.play.textContent = "Play";
}
async function start() {
  if (player.frame >= data.videos.frames - 1) player.videos.forEach((video) => { video.currentTime = 0; });
  player.playing = true;
  player.play.textContent = "Pause";
  const rate = Number(one("#speed").value);
  try {
    await Promise.all(player.videos.map((video) => { video.playbackRate = rate; return video.play(); }));
  } catch {
    if (player.playing) pause();
    return;
  }
  requestAnimationFrame(follow);
}
function follow() {
  if (!player.playing) return;
  const [leader, ...others] = player.videos;
  if (leader.ended || leader.currentTime >= duration - 0.001) {
    if (!one("#loop").checked) { pause(); seek(data.videos.frames - 1); return; }
    player.videos.forEach((video) => { video.currentTime = 0; video.play().catch(() => {}); });
  } else {
    for (const video of others) {
      if (Math.abs(video.currentTime - leader.currentTime) > 0.5 / data.videos.fps) video.currentTime = leader.currentTime;
    }
  }
  player.frame = Math.min(data.videos.frames - 1, Math.floor(leader.currentTime * data.videos.fps));
  showFrame();
  requestAnimationFrame(follow);
}
// A player's picture together with its number: a player goes on to its next frame while this script runs, so the number that
// `watch` noted may be of the frame before. A VideoFrame holds both.
function grab(video) {
  if (window.VideoFrame) {
    try {
      const image = new VideoFrame(video);
      return { image, frame: Math.round(image.timestamp / 1e6 * data.videos.fps), close: () => image.close() };
    } catch { /* nothing decoded yet, or a browser that gives none of a file: what was noted must do */ }
  }
  return { image: video, frame: video.shownFrame, close: () => {} };
}
const scratch = document.createElement("canvas");
function pixels(image, width, height) {
  scratch.width = width;
  scratch.height = height;
  const context = scratch.getContext("2d", { willReadFrequently: true });
  context.drawImage(image, 0, 0, width, height);
  return context.getImageData(0, 0, width, height);
}
function drawDifferences() {
  const gain = Number(player.difference.value);
  for (const { video, reference, canvas } of player.views) {
    if (!canvas) continue;
    canvas.hidden = gain === 0;
    if (gain === 0 || video.readyState < 2 || reference.readyState < 2) continue;
    const [own, wanted] = [grab(video), grab(reference)];
    if (own.frame === wanted.frame) drawDifference(canvas, own.image, wanted.image, [video.videoWidth, video.videoHeight], gain);
    own.close();
    wanted.close();
  }
}
function drawDifference(canvas, image, reference, [width, height], gain) {
  const own = pixels(image, width, height);
  const wanted = pixels(reference, width, height).data;
  for (let i = 0; i < own.data.length; i += 4) {
    for (let c = i; c < i + 3; c++) own.data[c] = gain * Math.abs(own.data[c] - wanted[c]);
  }
  if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
  canvas.getContext("2d").putImageData(own, 0, 0);
}
if (player.stage) {
  one("#clip").addEventListener("change", (event) => openClip(Number(event.target.value)));
  player.play.addEventListener("click", () => {
    if (!player.playing) return start();
    pause();
    seek(player.frame);
  });
  one("#back").addEventListener("click", () => { pause(); seek(player.frame - 1); });
  one("#forward").addEventListener("click", () => { pause(); seek(player.frame + 1); });
  player.scrub.addEventListener("input", () => { pause(); seek(Number(player.scrub.value)); });
  one("#speed").addEventListener("change", (event) => player.videos.forEach((video) => { video.playbackRate = Number(event.target.value); }));
  player.difference.addEventListener("change", drawDifferences);
  all("[data-clip]").forEach((button) => button.addEventListener("click", () => {
    openClip(Number(button.dataset.clip));
    one("#videos").scrollIntoView({ behavior: matchMedia("(prefers-reduced-motion: reduce)").matches ? "auto" : "smooth" });
  }));
  openClip(0);
}

// Paper shows everything.
let closed = [];
addEventListener("beforeprint", () => {
  closed = all("details:not([open])");
  closed.forEach((node) => { node.open = true; });
});
addEventListener("afterprint", () => closed.forEach((node) => { node.open = false; }));
