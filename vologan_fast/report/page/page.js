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

  // Point clouds.
  for (const place of document.querySelectorAll(".clouds")) {
    const { unit, choices } = numbers.clouds[place.id];
    const view = new CloudView(place);
    const menu = document.querySelector(`[data-clouds="${place.id}"]`);
    const show = () => view.show(unit, choices[menu.selectedIndex][1]);
    menu.addEventListener("change", show);
    document.querySelector(`[data-reset="${place.id}"]`).addEventListener("click", () => view.reset());
    show();
  }
})();
