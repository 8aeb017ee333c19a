"use strict";
(() => {
  const numbers = JSON.parse(document.getElementById("numbers").textContent);
  const options = { responsive: true, displaylogo: false, displayModeBar: matchMedia("(hover: hover)").matches ? "hover" : false };
  const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const floats = (packed) => new Float32Array(bytes(packed.bdata).buffer);

  // Plots. A menu changes the figure; the controls of curves smooth them and change the axis.
  const shown = {};
  const smoothed = (values, weight) => {
    let mean = 0, total = 0;
    return Array.from(values, (value) => {
      if (!Number.isFinite(value)) return null;
      mean = weight * mean + (1 - weight) * value;
      total = weight * total + (1 - weight); // without it, the first means would be drawn to 0
      return mean / total;
    });
  };
  const draw = (key) => {
    const plot = numbers.plots[key];
    const state = (shown[key] ||= { choice: 0, weight: 0, log: false });
    const figure = plot.choices[state.choice][1];
    let { data, layout } = figure;
    if (plot.curves) {
      if (state.weight > 0)
        data = data.map((trace) => ({ ...trace, x: Array.from(floats(trace.x)), y: smoothed(floats(trace.y), state.weight) }));
      if (state.log) layout = { ...layout, yaxis: { ...layout.yaxis, type: "log" } };
      layout = { ...layout, uirevision: `${state.choice}-${state.log}` }; // smoothing keeps the zoom
    }
    // The legend lies below the title of the axis, whatever the height.
    const height = document.getElementById(key).clientHeight;
    if (layout.legend.orientation === "h") layout = { ...layout, legend: { ...layout.legend, y: -52 / Math.max(height - 150, 80) } };
    return Plotly.react(key, data, layout, options);
  };
  for (const key of Object.keys(numbers.plots)) draw(key);
  for (const menu of document.querySelectorAll("select[data-plot]"))
    menu.addEventListener("change", () => {
      shown[menu.dataset.plot].choice = menu.selectedIndex;
      draw(menu.dataset.plot);
    });
  for (const controls of document.querySelectorAll("[data-curves]")) {
    const key = controls.dataset.curves;
    const smooth = controls.querySelector(".smooth");
    smooth.addEventListener("input", () => {
      controls.querySelector("output").textContent = Number(smooth.value).toFixed(2);
      shown[key].weight = Number(smooth.value);
      draw(key);
    });
    controls.querySelector(".log").addEventListener("change", (event) => {
      shown[key].log = event.target.checked;
      draw(key);
    });
  }

  // Grids over the steps.
  for (const slider of document.querySelectorAll("input[data-slider]")) {
    const frames = numbers.sliders[slider.dataset.slider];
    const place = document.getElementById(slider.dataset.slider);
    const show = () => {
      const [step, pictures] = frames[Number(slider.value)];
      slider.parentElement.querySelector("output").textContent = step.toLocaleString("en");
      while (place.children.length > pictures.length) place.lastChild.remove();
      pictures.forEach(([caption, file], i) => {
        const figure = place.children[i] || place.appendChild(document.createElement("figure"));
        if (!figure.children.length) figure.append(document.createElement("img"), document.createElement("figcaption"));
        figure.firstChild.src = `data:image/jpeg;base64,${file}`;
        figure.firstChild.alt = "";
        figure.lastChild.textContent = caption;
      });
    };
    slider.addEventListener("input", show);
    show();
  }

  // Point clouds. All scenes of a figure have one camera: a drag in one of them turns the others.
  const front = { eye: { x: 0.4, y: -1.55, z: 0.2 }, up: { x: 0, y: 0, z: 1 }, center: { x: 0, y: 0, z: 0 } };
  const sceneName = (i) => (i ? `scene${i + 1}` : "scene");
  const unpack = (cloud) => {
    const places = new Uint16Array(bytes(cloud.points).buffer);
    const colors = bytes(cloud.colors);
    const count = places.length / 3;
    const axis = (k) => Float32Array.from({ length: count }, (_, i) => cloud.low[k] + (cloud.size[k] * places[3 * i + k]) / 65535);
    const color = Array.from({ length: count }, (_, i) => `rgb(${colors[3 * i]},${colors[3 * i + 1]},${colors[3 * i + 2]})`);
    return { x: axis(0), y: axis(1), z: axis(2), color, count };
  };
  const drawClouds = (key, choice) => {
    const place = document.getElementById(key);
    const { unit, choices } = numbers.clouds[key];
    const clouds = choices[choice][1];
    const narrow = place.clientWidth < 700;
    const n = clouds.length;
    place.style.height = narrow ? `${n * 220}px` : "430px";
    // One box around all clouds, so that they can be compared.
    const low = [0, 1, 2].map((k) => Math.min(...clouds.map((cloud) => cloud.low[k])));
    const high = [0, 1, 2].map((k) => Math.max(...clouds.map((cloud) => cloud.low[k] + cloud.size[k])));
    const size = [0, 1, 2].map((k) => Math.max(high[k] - low[k], 1e-3));
    const largest = Math.max(...size);
    const layout = { margin: { l: 0, r: 0, t: 0, b: 0 }, showlegend: false, paper_bgcolor: "rgba(0,0,0,0)", annotations: [] };
    const data = clouds.map((cloud, i) => {
      const found = unpack(cloud);
      const ends = [i / n, (i + 1) / n];
      const domain = narrow ? { x: [0, 1], y: [1 - ends[1], 1 - ends[0]] } : { x: ends, y: [0, 1] };
      const axis = (k, name) => ({
        range: [low[k] - 0.02 * size[k], high[k] + 0.02 * size[k]], title: { text: unit ? `${name} (${unit})` : name },
        nticks: 4, tickfont: { size: 9 }, backgroundcolor: "#fafafa", showbackground: true, showspikes: false,
      });
      layout[sceneName(i)] = {
        domain, camera: structuredClone(place.camera || front), dragmode: "turntable", hovermode: false, aspectmode: "manual",
        aspectratio: { x: size[0] / largest, y: size[1] / largest, z: size[2] / largest },
        xaxis: axis(0, "right"), yaxis: axis(1, "away"), zaxis: axis(2, "up"),
      };
      layout.annotations.push({
        text: cloud.title, showarrow: false, xref: "paper", yref: "paper", x: domain.x[0] + 0.01, y: domain.y[1],
        xanchor: "left", yanchor: "top", font: { size: 14 },
      });
      return {
        type: "scatter3d", mode: "markers", scene: sceneName(i), x: found.x, y: found.y, z: found.z, hoverinfo: "skip",
        marker: { size: Math.max(1.2, Math.min(3.2, 220 / Math.sqrt(found.count + 1))), symbol: "square", color: found.color, opacity: 1, line: { width: 0 } },
      };
    });
    // plotly.js draws scenes with twice the screen's resolution by default, four times the work of a software renderer.
    return Plotly.react(place, data, layout, { ...options, plotGlPixelRatio: Math.min(devicePixelRatio, 2) }).then(() => link(place, n));
  };
  const link = (place, n) => {
    if (place.linked === n) return;
    place.removeAllListeners("plotly_relayouting");
    place.removeAllListeners("plotly_relayout");
    let busy = false, moved = false;
    const turn = () => {
      const cameras = {}; // of all scenes: a relayout would turn a scene without one back
      for (let i = 0; i < n; i++) cameras[`${sceneName(i)}.camera`] = structuredClone(place.camera);
      [busy, moved] = [true, false];
      Plotly.relayout(place, cameras);
      requestAnimationFrame(() => { // until the scenes are painted, moves are only noted
        busy = false;
        if (moved) turn();
      });
    };
    const follow = (change) => {
      const changed = Object.keys(change).filter((name) => /^scene\d*\.camera$/.test(name));
      if (changed.length !== 1 || n < 2) return; // several: this is our own change
      place.camera = structuredClone(change[changed[0]]);
      if (busy) moved = true;
      else turn();
    };
    place.on("plotly_relayouting", follow);
    place.on("plotly_relayout", follow);
    place.linked = n;
  };
  for (const key of Object.keys(numbers.clouds)) {
    drawClouds(key, 0);
    let narrow = document.getElementById(key).clientWidth < 700;
    addEventListener("resize", () => {
      const now = document.getElementById(key).clientWidth < 700;
      if (now !== narrow) drawClouds(key, document.querySelector(`[data-clouds="${key}"]`).selectedIndex);
      narrow = now;
    });
  }
  for (const menu of document.querySelectorAll("select[data-clouds]"))
    menu.addEventListener("change", () => drawClouds(menu.dataset.clouds, menu.selectedIndex));
  for (const button of document.querySelectorAll("[data-reset]"))
    button.addEventListener("click", () => {
      const place = document.getElementById(button.dataset.reset);
      place.camera = undefined;
      drawClouds(button.dataset.reset, document.querySelector(`[data-clouds="${button.dataset.reset}"]`).selectedIndex);
    });
})();
