// Three planes of the run's volumes. Everything it needs stands in the page: see viewer.py for how it is packed.
"use strict";
(async () => {
  const root = document.getElementById("viewer");
  const about = JSON.parse(document.getElementById("viewer-about").textContent);
  const { layers, voxel, shape } = about;
  const field = (name) => root.querySelector(`[data-is="${name}"]`);
  const cross = about.cross.slice();
  const PLANES = [
    // the axes that run along a picture's columns and rows, and through the slices; columns and rows run backwards
    { name: "sagittal", column: 1, row: 2, through: 0 },
    { name: "coronal", column: 0, row: 2, through: 1 },
    { name: "axial", column: 0, row: 1, through: 2 },
  ];

  async function unpack(layer, place) {
    const text = document.getElementById(`viewer-volume-${place}`).textContent;
    const packed = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
    const bytes = new Uint8Array(await new Response(stream).arrayBuffer());
    const values = new Int16Array(bytes.length / 2);
    let value = 0;
    for (let i = 0; i < values.length; i++) {
      value += bytes[i] | (bytes[values.length + i] << 8);
      values[i] = value;
    }
    return values;
  }

  const waiting = new Map();
  function loaded(place) {
    const layer = layers[place];
    if (!waiting.has(place)) {
      waiting.set(place, unpack(layer, place).then((values) => { layer.values = values; draw(); }));
    }
    return layer.values;
  }

  function at(layer, index) {
    const [i, j, k] = index.map((n, axis) => Math.min(Math.floor(n / layer.stride), layer.shape[axis] - 1));
    const steps = layer.values[i + layer.shape[0] * (j + layer.shape[1] * k)];
    if (layer.names[Math.round(steps * layer.level)]) return layer.names[Math.round(steps * layer.level)];
    return steps === about.outside ? "outside its mask" : `${(steps * layer.level).toPrecision(3)} ${layer.unit}`;
  }

  const grey = (share) => [255 * share, 255 * share, 255 * share];
  const hot = (share) => [765 * share, 765 * share - 255, 765 * share - 510];

  // One slice as pixels, a voxel each, on a canvas that nobody sees; what is outside is below every window.
  function slice(layer, plane, window, colour, alpha) {
    const n = layer.shape, step = [1, n[0], n[0] * n[1]];
    const width = n[plane.column], height = n[plane.row];
    const through = Math.min(Math.floor(cross[plane.through] / layer.stride), n[plane.through] - 1);
    const pixels = new ImageData(width, height);
    const [low, high] = window, scale = layer.level / (high - low || 1);
    for (let v = 0; v < height; v++) {
      for (let u = 0; u < width; u++) {
        const from = (width - 1 - u) * step[plane.column] + (height - 1 - v) * step[plane.row] + through * step[plane.through];
        const share = Math.min(Math.max((layer.values[from] - low / layer.level) * scale, 0), 1);
        const to = 4 * (v * width + u);
        pixels.data.set(colour(share), to);
        pixels.data[to + 3] = 255 * alpha(share);
      }
    }
    const canvas = document.createElement("canvas");
    canvas.width = width;
    canvas.height = height;
    canvas.getContext("2d").putImageData(pixels, 0, 0);
    return canvas;
  }

  const extent = (axis) => shape[axis] * voxel[axis];
  const canvases = PLANES.map((plane) => field(plane.name));
  let base = 0, over = -1, window_ = layers[0].window.slice();

  function draw() {
    const below = loaded(base) && layers[base];
    const above = over >= 0 && loaded(over) && layers[over];
    if (!below) return;
    const opacity = Number(field("opacity").value) / 100;
    PLANES.forEach((plane, place) => {
      const canvas = canvases[place], pen = canvas.getContext("2d");
      const sharp = window.devicePixelRatio || 1;
      canvas.width = Math.max(Math.round(canvas.clientWidth * sharp), 1);
      canvas.height = Math.max(Math.round((canvas.width * extent(plane.row)) / extent(plane.column)), 1);
      pen.imageSmoothingEnabled = false;
      const paint = (layer, picture) => {
        // a coarse layer's last voxel can reach beyond the grid: it is drawn there and cut off
        const wide = (picture.width * layer.stride) / shape[plane.column] * canvas.width;
        const high = (picture.height * layer.stride) / shape[plane.row] * canvas.height;
        pen.drawImage(picture, canvas.width - wide, canvas.height - high, wide, high);
      };
      paint(below, slice(below, plane, window_, grey, () => 1));
      if (above) paint(above, slice(above, plane, above.window, hot, (share) => (share > 0 ? opacity : 0)));
      const across = canvas.width * (1 - (cross[plane.column] + 0.5) / shape[plane.column]);
      const down = canvas.height * (1 - (cross[plane.row] + 0.5) / shape[plane.row]);
      pen.fillStyle = "#35d0ff90";
      pen.fillRect(across - 0.5, 0, 1, canvas.height);
      pen.fillRect(0, down - 0.5, canvas.width, 1);
    });
    const voxels = about.order.reduce((file, from, axis) => {
      const [start, stop] = about.box[from];
      file[from] = about.flipped[axis] ? stop - 1 - cross[axis] : start + cross[axis];
      return file;
    }, []);
    const value = (layer) => `${layer.name} ${at(layer, cross)}`;
    field("value").textContent =
      `voxel (${voxels.join(", ")}): ` + [below, above].filter(Boolean).map(value).join("; ");
  }

  // The sliders run from 0 to 1000 over the layer's range.
  const ends = [field("low"), field("high")];
  const share = (value, [low, high]) => Math.round((1000 * (value - low)) / (high - low || 1));
  function show(place) {
    base = place;
    window_ = layers[base].window.slice();
    ends.forEach((slider, end) => { slider.value = share(window_[end], layers[base].range); });
    tell();
    draw();
  }
  function tell() {
    field("window").textContent = `${window_.map((end) => end.toPrecision(3)).join(" to ")} ${layers[base].unit}`;
  }
  ends.forEach((slider, end) => slider.addEventListener("input", () => {
    const [low, high] = layers[base].range;
    window_[end] = low + (slider.value / 1000) * (high - low);
    tell();
    draw();
  }));
  field("reset").addEventListener("click", () => show(base));
  field("opacity").addEventListener("input", draw);

  const [shown, upon] = [field("map"), field("overlay")];
  layers.forEach((layer, place) => {
    shown.add(new Option(layer.name, place));
    upon.add(new Option(layer.name, place));
  });
  shown.addEventListener("change", () => show(Number(shown.value)));
  upon.addEventListener("change", () => { over = Number(upon.value); draw(); });

  const within = (value, axis) => Math.min(Math.max(Math.round(value), 0), shape[axis] - 1);
  PLANES.forEach((plane, place) => {
    const canvas = canvases[place];
    const point = (event) => {
      if (!(event.buttons & 1)) return;
      const box = canvas.getBoundingClientRect();
      const left = (event.clientX - box.left) / box.width, top = (event.clientY - box.top) / box.height;
      cross[plane.column] = within((1 - left) * shape[plane.column] - 0.5, plane.column);
      cross[plane.row] = within((1 - top) * shape[plane.row] - 0.5, plane.row);
      draw();
    };
    const move = (steps) => {
      cross[plane.through] = within(cross[plane.through] + steps, plane.through);
      draw();
    };
    canvas.addEventListener("pointerdown", point);
    canvas.addEventListener("pointermove", point);
    canvas.addEventListener("wheel", (event) => { event.preventDefault(); move(event.deltaY > 0 ? -1 : 1); }, { passive: false });
    canvas.addEventListener("keydown", (event) => {
      const steps = { ArrowUp: 1, ArrowDown: -1, PageUp: 5, PageDown: -5 }[event.key];
      if (steps) { event.preventDefault(); move(steps); }
    });
  });
  window.addEventListener("resize", draw);
  root.hidden = false;
  show(0);
})();
