"use strict";
// Paints point clouds side by side. They share one camera, which turns around the centre of the box that holds all clouds.
//
// Each point is a small square of pixels, and the nearest one wins. This takes a processor a few milliseconds, with or
// without a GPU. WebGL takes far longer where no GPU is, and some machines have none.
class CloudView {
  static front = { yaw: 0.25, pitch: 0.12, zoom: 1 };
  static distance = 3; // from the eye to the centre, if the box has the radius 1

  constructor(place) {
    this.place = place;
    this.camera = { ...CloudView.front };
    this.cells = [];
    this.pointers = new Map();
    new ResizeObserver(() => this.paintSoon()).observe(place);
    place.addEventListener("pointerdown", (event) => {
      if (event.target.tagName !== "CANVAS" || event.button !== 0) return;
      event.target.setPointerCapture(event.pointerId);
      this.pointers.set(event.pointerId, [event.clientX, event.clientY]);
    });
    place.addEventListener("pointermove", (event) => this.follow(event));
    for (const end of ["pointerup", "pointercancel"]) place.addEventListener(end, (event) => this.pointers.delete(event.pointerId));
    place.addEventListener("wheel", (event) => {
      if (event.target.tagName !== "CANVAS" || event.ctrlKey) return;
      event.preventDefault();
      this.zoom(Math.exp(-0.0015 * event.deltaY * (event.deltaMode ? 30 : 1)));
    }, { passive: false });
    place.addEventListener("keydown", (event) => {
      const turn = { ArrowLeft: [-20, 0], ArrowRight: [20, 0], ArrowUp: [0, -20], ArrowDown: [0, 20] }[event.key];
      const zoom = { "+": 1.15, "-": 1 / 1.15 }[event.key];
      if (turn) this.turn(...turn);
      else if (zoom) this.zoom(zoom);
      else return;
      event.preventDefault();
    });
  }

  // One finger or the mouse turns. Two fingers zoom by the distance between them.
  follow(event) {
    const before = this.pointers.get(event.pointerId);
    if (!before) return;
    const now = [event.clientX, event.clientY];
    const other = [...this.pointers].find(([id]) => id !== event.pointerId)?.[1];
    const apart = (a, b) => Math.max(Math.hypot(a[0] - b[0], a[1] - b[1]), 1);
    if (other) this.zoom(apart(now, other) / apart(before, other));
    else this.turn(now[0] - before[0], now[1] - before[1]);
    this.pointers.set(event.pointerId, now);
  }

  turn(right, down) {
    this.camera.yaw -= (Math.PI / 400) * right;
    this.camera.pitch = Math.max(-Math.PI / 2, Math.min(Math.PI / 2, this.camera.pitch + (Math.PI / 400) * down));
    this.paintSoon();
  }

  zoom(factor) {
    this.camera.zoom = Math.max(0.5, Math.min(8, this.camera.zoom * factor));
    this.paintSoon();
  }

  reset() {
    this.camera = { ...CloudView.front };
    this.paintSoon();
  }

  // Show other clouds with the same camera.
  show(unit, clouds) {
    this.unit = unit;
    // One box around all clouds that have points, so that they can be compared.
    const seen = clouds.some((cloud) => cloud.points) ? clouds.filter((cloud) => cloud.points) : clouds;
    this.low = [0, 1, 2].map((k) => Math.min(...seen.map((cloud) => cloud.low[k])));
    this.high = [0, 1, 2].map((k) => Math.max(...seen.map((cloud) => cloud.low[k] + cloud.size[k])));
    this.centre = this.low.map((low, k) => (low + this.high[k]) / 2);
    this.radius = Math.max(Math.hypot(...this.low.map((low, k) => this.high[k] - low)) / 2, 1e-6);
    this.cells = clouds.map((cloud) => this.cell(cloud));
    this.place.replaceChildren(...this.cells.map((cell) => cell.figure));
    this.paintSoon();
  }

  cell(cloud) {
    const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
    const packed = new Uint16Array(bytes(cloud.points).buffer);
    const rgb = bytes(cloud.colors);
    const count = packed.length / 3;
    const points = new Float32Array(3 * count); // in the unit sphere around the centre
    const sizes = new Float32Array(count);
    const colors = new Uint8ClampedArray(4 * count).fill(255);
    for (let i = 0; i < count; i++) {
      for (let k = 0; k < 3; k++) {
        const value = cloud.low[k] + (cloud.size[k] * packed[3 * i + k]) / 65535;
        points[3 * i + k] = (value - this.centre[k]) / this.radius;
        colors[4 * i + k] = rgb[3 * i + k];
        if (k === 1) sizes[i] = (cloud.spacing * value) / this.radius; // a pixel grows with its distance
      }
    }
    const figure = document.createElement("figure");
    const [canvas, caption] = [document.createElement("canvas"), document.createElement("figcaption")];
    caption.textContent = cloud.title;
    canvas.tabIndex = 0;
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", `point cloud of ${cloud.title}`);
    figure.append(canvas, caption);
    return { figure, canvas, points, sizes, colors: new Uint32Array(colors.buffer), buffer: document.createElement("canvas") };
  }

  // However many events come, each cloud is painted once a frame.
  paintSoon() {
    this.frame ||= requestAnimationFrame(() => {
      this.frame = 0;
      for (const cell of this.cells) this.paint(cell);
    });
  }

  paint(cell) {
    const { canvas } = cell;
    const ratio = Math.min(devicePixelRatio, 2);
    const [width, height] = [Math.round(canvas.clientWidth * ratio), Math.round(canvas.clientHeight * ratio)];
    if (!width || !height) return;
    if (canvas.width !== width || canvas.height !== height || !cell.image) {
      [canvas.width, canvas.height] = [cell.buffer.width, cell.buffer.height] = [width, height];
      cell.image = new ImageData(width, height);
      cell.nearest = new Float32Array(width * height);
    }
    const view = this.view(width, height, ratio);
    const [context, buffer] = [canvas, cell.buffer].map((of) => of.getContext("2d", { willReadFrequently: true })); // not on a GPU
    context.clearRect(0, 0, width, height);
    this.paintBox(context, view, ratio);
    this.paintPoints(cell, view, ratio);
    buffer.putImageData(cell.image, 0, 0);
    context.drawImage(cell.buffer, 0, 0);
  }

  // The camera of a canvas. Without zoom, the box fits into it, seen from the front.
  view(width, height, ratio) {
    const { yaw, pitch, zoom } = this.camera;
    const fit = this.rotation(CloudView.front.yaw, CloudView.front.pitch);
    const corners = [0, 1, 2, 3, 4, 5, 6, 7].map((i) => fit(this.corner([i & 1, (i >> 1) & 1, i >> 2])));
    const wide = Math.max(...corners.map(([x, , away]) => Math.abs(x) / away));
    const high = Math.max(...corners.map(([, y, away]) => Math.abs(y) / away));
    const margin = 34 * ratio; // for the labels of the axes
    const focal = zoom * Math.min((width / 2 - margin) / wide, (height / 2 - margin) / high);
    const rotate = this.rotation(yaw, pitch);
    const project = (point) => {
      const [x, y, away] = rotate(point);
      return [width / 2 + (focal * x) / away, height / 2 - (focal * y) / away];
    };
    return { width, height, focal, project, yaw, pitch };
  }

  // A function from a place in the unit sphere to the camera's right, up and away.
  rotation(yaw, pitch) {
    const [a, b, c, d] = [Math.cos(yaw), Math.sin(yaw), Math.cos(pitch), Math.sin(pitch)];
    return ([x, y, z]) => {
      const away = a * y - b * x;
      return [a * x + b * y, d * away + c * z, CloudView.distance + c * away - d * z];
    };
  }

  corner(sides) {
    return sides.map((side, k) => ((side ? this.high[k] : this.low[k]) - this.centre[k]) / this.radius);
  }

  paintPoints({ points, sizes, colors, image, nearest }, { width, height, focal, yaw, pitch }, ratio) {
    const pixels = new Uint32Array(image.data.buffer);
    pixels.fill(0);
    nearest.fill(Infinity);
    const [a, b, c, d] = [Math.cos(yaw), Math.sin(yaw), Math.cos(pitch), Math.sin(pitch)]; // as in rotation()
    for (let i = 0; i < sizes.length; i++) {
      const [x, y, z] = [points[3 * i], points[3 * i + 1], points[3 * i + 2]];
      const level = a * y - b * x;
      const away = CloudView.distance + c * level - d * z;
      const scale = focal / away;
      const side = Math.max(1.5 * ratio, Math.min(12 * ratio, 1.2 * sizes[i] * scale));
      const left = Math.round(width / 2 + (a * x + b * y) * scale - side / 2);
      const top = Math.round(height / 2 - (d * level + c * z) * scale - side / 2);
      const [right, bottom] = [Math.min(left + Math.round(side), width), Math.min(top + Math.round(side), height)];
      for (let row = Math.max(top, 0); row < bottom; row++)
        for (let place = row * width + Math.max(left, 0); place < row * width + right; place++)
          if (away < nearest[place]) {
            nearest[place] = away;
            pixels[place] = colors[i];
          }
    }
  }

  // The three sides of the box behind the points, with lines at round numbers, and labels at the outer edges.
  paintBox(context, view, ratio) {
    const { yaw, pitch, project, width, height } = view;
    const eye = [Math.sin(yaw) * Math.cos(pitch), -Math.cos(yaw) * Math.cos(pitch), Math.sin(pitch)];
    const back = eye.map((toward) => (toward > 0 ? 0 : 1));
    const ticks = [0, 1, 2].map((k) => roundNumbers(this.low[k], this.high[k], 4));
    const at = (k, value, sides) => {
      const place = this.corner(sides);
      place[k] = (value - this.centre[k]) / this.radius;
      return project(place);
    };
    const line = (from, to) => [context.moveTo(...from), context.lineTo(...to)];
    context.lineWidth = ratio;
    context.strokeStyle = "#cdd1d7";
    context.beginPath();
    for (const k of [0, 1, 2])
      for (const [one, other] of [[(k + 1) % 3, (k + 2) % 3], [(k + 2) % 3, (k + 1) % 3]])
        for (const value of [this.low[k], ...ticks[k], this.high[k]]) {
          // A line at this value, on the side `one`, from end to end of `other`.
          const [from, to] = [[...back], [...back]];
          [from[other], to[other]] = [0, 1];
          line(at(k, value, from), at(k, value, to));
        }
    context.stroke();

    context.fillStyle = "#555";
    context.font = `${10 * ratio}px system-ui, sans-serif`;
    context.textAlign = "center";
    context.textBaseline = "middle";
    const middle = project([0, 0, 0]);
    const used = [];
    const write = (text, place, beside) => {
      const length = Math.hypot(...beside) || 1;
      const wide = context.measureText(text).width / 2;
      const x = Math.max(wide, Math.min(width - wide, place[0] + (beside[0] / length) * (wide + 5 * ratio)));
      const y = Math.max(6 * ratio, Math.min(height - 6 * ratio, place[1] + (beside[1] / length) * 9 * ratio));
      if (used.some((other) => Math.abs(other.x - x) < other.wide + wide + 3 * ratio && Math.abs(other.y - y) < 11 * ratio)) return;
      used.push({ x, y, wide });
      context.fillText(text, x, y);
    };
    ["right", "away", "up"].forEach((name, k) => {
      // The edges along this axis between a front and a back side are at the outline. The lower, or the left one, is labelled.
      const edges = [0, 1, 2].filter((j) => j !== k).map((j) => back.map((side, l) => (l === j ? 1 - side : side)));
      const [first, second] = edges.map((sides) => at(k, this.centre[k], sides));
      const sides = k === 2 ? edges[first[0] < second[0] ? 0 : 1] : edges[first[1] > second[1] ? 0 : 1];
      const [from, to] = [at(k, this.low[k], sides), at(k, this.high[k], sides)];
      const long = Math.hypot(to[0] - from[0], to[1] - from[1]);
      if (long < 36 * ratio) return; // seen from its end
      const half = [(from[0] + to[0]) / 2, (from[1] + to[1]) / 2];
      let outward = [(from[1] - to[1]) / long, (to[0] - from[0]) / long];
      if (outward[0] * (half[0] - middle[0]) + outward[1] * (half[1] - middle[1]) < 0) outward = outward.map((v) => -v);
      const title = this.unit ? `${name} (${this.unit})` : name;
      write(title, [half[0] + outward[0] * 14 * ratio, half[1] + outward[1] * 12 * ratio], outward);
      for (const value of ticks[k]) write(String(Number(value.toPrecision(6))), at(k, value, sides), outward);
    });
  }
}

// About `count` round numbers between two numbers.
const roundNumbers = (low, high, count) => {
  const rough = Math.max(high - low, 1e-9) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((factor) => factor * power >= rough * 0.999);
  const found = [];
  for (let i = Math.ceil(low / step); i * step <= high; i++) found.push(i * step);
  return found;
};
