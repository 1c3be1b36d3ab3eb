{
  const points = JSON.parse(document.getElementById("points").textContent);
  const section = document.getElementById("map").parentElement;
  const svg = section.querySelector("svg"), told = section.querySelector(".told");
  const form = section.querySelector("form"), kinds = form.querySelector(".kinds");
  const area = { left: 66, right: 705, top: 14, bottom: 372 };
  const root = (loss) => Math.sign(loss) * Math.sqrt(Math.abs(loss));
  const put = (name, attributes, text) => {
    const element = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    if (text !== undefined) element.textContent = text;
    return svg.appendChild(element);
  };
  const short = (value) => (value >= 1e6 ? `${+(value / 1e6).toPrecision(3)} MB` : value >= 1e3 ? `${+(value / 1e3).toPrecision(3)} KB` : `${value} B`);
  const span = (low, high, value) => (high > low ? (value - low) / (high - low) : 0.5);
  for (const kind of new Set(points.map((point) => point.kind))) {
    const label = kinds.appendChild(document.createElement("label"));
    const box = label.appendChild(document.createElement("input"));
    Object.assign(box, { type: "checkbox", checked: true, value: kind });
    label.append(` ${kind}`);
  }
  const draw = () => {
    svg.replaceChildren();
    const axis = form.elements.x.value;
    const on = new Set([...kinds.querySelectorAll("input:checked")].map((box) => box.value));
    const shown = points.filter((point) => on.has(point.kind) && point[axis] > 0 && point.loss < 1e3);
    if (!shown.length) return;
    const xs = shown.map((point) => Math.log(point[axis])), ys = shown.map((point) => root(point.loss));
    const [west, east] = [Math.min(...xs), Math.max(...xs)], [best, worst] = [Math.min(...ys), Math.max(...ys)];
    const x = (value) => area.left + 16 + span(west, east, Math.log(value)) * (area.right - area.left - 32);
    const y = (loss) => area.top + 14 + span(best, worst, root(loss)) * (area.bottom - area.top - 28);
    let last = -Infinity;
    for (const loss of [-0.25, -0.1, -0.05, -0.01, 0, 0.001, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10]) {
      if (root(loss) < best - 1e-9 || root(loss) > worst + 1e-9 || y(loss) - last < 18) continue;
      last = y(loss);
      put("line", { class: "line", x1: area.left, x2: area.right, y1: last, y2: last });
      put("text", { x: area.left - 8, y: last + 4, "text-anchor": "end" }, `${+(loss * 100).toFixed(1)} %`);
    }
    for (let step = 0; step <= 4; step++) {
      const value = Math.exp(west + ((east - west) * step) / 4);
      put("text", { x: x(value), y: area.bottom + 22, "text-anchor": ["start", "middle", "middle", "middle", "end"][step] },
        axis === "size" ? short(value) : `${+(value * 1e6).toPrecision(3)} µs`);
      if (east === west) break;
    }
    put("text", { x: (area.left + area.right) / 2, y: 415, "text-anchor": "middle" }, axis === "size" ? "bytes of the file, logarithmic" : "median latency of a call, logarithmic");
    for (const point of shown) {
      const attributes = { class: `point${point.front ? " front" : ""}${point.chosen ? " chosen" : ""}`, tabindex: 0, role: "img", "aria-label": point.told };
      const [cx, cy] = [x(point[axis]), y(point.loss)];
      const mark = point.uncompressed ? put("rect", { ...attributes, x: cx - 6, y: cy - 6, width: 12, height: 12 }) : put("circle", { ...attributes, cx, cy, r: point.chosen ? 9 : 7 });
      for (const event of ["pointerenter", "focus", "click"]) mark.addEventListener(event, () => { told.textContent = point.told; });
    }
  };
  section.hidden = false;
  form.addEventListener("change", draw);
  draw();
}
