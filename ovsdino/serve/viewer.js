// The photograph with the classes laid over it: the name below the pointer, and a list that shows one class alone.
const root = element.querySelector(".ov-viewer");

function loaded(source) {
  return new Promise((done, failed) => {
    const image = new Image();
    image.onload = () => done(image);
    image.onerror = failed;
    image.src = source;
  });
}

function made(tag, className, text) {
  const node = document.createElement(tag);
  node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
}

function percent(value) {
  return value >= 0.0995 ? `${Math.round(100 * value)} %` : `${(100 * value).toFixed(1)} %`;
}

async function draw() {
  const value = props.value;
  const drawn = (root.drawn = (root.drawn || 0) + 1);
  if (!value || !value.photo) {
    root.replaceChildren(made("div", "ov-empty", (value && value.text) || root.dataset.empty));
    return;
  }
  const [photo, labels] = await Promise.all([loaded(value.photo), loaded(value.labels)]);
  if (root.drawn !== drawn) return; // a later result came first
  const [width, height] = [photo.naturalWidth, photo.naturalHeight];
  const canvas = made("canvas", "ov-canvas");
  Object.assign(canvas, { width, height });
  const pen = canvas.getContext("2d", { willReadFrequently: true });
  pen.drawImage(labels, 0, 0);
  const coded = pen.getImageData(0, 0, width, height).data;
  const index = new Uint16Array(width * height);
  for (let i = 0; i < index.length; i++) index[i] = coded[4 * i] + 256 * coded[4 * i + 1];

  let opacity = 0.55;
  let alone = null;
  function paint() {
    pen.clearRect(0, 0, width, height);
    const layer = pen.createImageData(width, height);
    for (let y = 0, i = 0; y < height; y++) {
      for (let x = 0; x < width; x++, i++) {
        const one = value.classes[index[i]];
        const edge = (x + 1 < width && index[i + 1] !== index[i]) || (y + 1 < height && index[i + width] !== index[i]);
        const shown = one && (alone === null || alone === index[i]);
        if (edge && alone === null) layer.data.set([255, 255, 255, 200], 4 * i);
        else if (shown) layer.data.set([...one.color, 255 * (alone === null ? opacity : 0.75)], 4 * i);
        else if (alone !== null) layer.data.set([20, 20, 25, 110], 4 * i);
      }
    }
    pen.putImageData(layer, 0, 0);
  }

  const frame = made("div", "ov-frame");
  const picture = made("img", "ov-photo");
  picture.src = value.photo;
  picture.alt = `segmented: ${value.classes.filter((one) => one.found).map((one) => one.name).join(", ")}`;
  const tip = made("div", "ov-tip");
  frame.append(picture, canvas, tip);
  frame.addEventListener("mousemove", (event) => {
    const box = canvas.getBoundingClientRect();
    const x = Math.min(width - 1, Math.max(0, Math.floor(((event.clientX - box.left) / box.width) * width)));
    const y = Math.min(height - 1, Math.max(0, Math.floor(((event.clientY - box.top) / box.height) * height)));
    const one = value.classes[index[y * width + x]];
    tip.textContent = one ? one.name + (one.score === null ? "" : ` · ${percent(one.score)} sure`) : "none of the words";
    tip.style.display = "block";
    tip.style.left = `${Math.min(event.clientX - box.left + 14, box.width - tip.offsetWidth - 4)}px`;
    tip.style.top = `${Math.max(event.clientY - box.top - 34, 4)}px`;
  });
  frame.addEventListener("mouseleave", () => (tip.style.display = "none"));

  const list = made("div", "ov-list");
  value.classes.forEach((one, number) => {
    const chip = made("button", one.found ? "ov-chip" : "ov-chip ov-missing");
    chip.type = "button";
    const swatch = made("span", "ov-swatch");
    swatch.style.background = `rgb(${one.color.join(",")})`;
    chip.append(swatch, made("b", "", one.name), made("span", "ov-share", one.found ? percent(one.share) : "not found"));
    chip.title = one.note;
    if (one.found) {
      const show = (which) => () => ((alone = which), paint());
      chip.addEventListener("mouseenter", show(number));
      chip.addEventListener("mouseleave", show(null));
      chip.addEventListener("focus", show(number));
      chip.addEventListener("blur", show(null));
    }
    list.append(chip);
  });
  if (value.unlabeled > 0.0005) list.append(made("span", "ov-rest", `none of the words ${percent(value.unlabeled)}`));

  const bar = made("label", "ov-opacity", "colors");
  const slider = made("input", "");
  Object.assign(slider, { type: "range", min: 0, max: 100, value: 55 });
  slider.setAttribute("aria-label", "strength of the colors");
  slider.addEventListener("input", () => ((opacity = slider.value / 100), paint()));
  bar.append(slider);
  const foot = made("div", "ov-foot");
  foot.append(made("span", "ov-times", value.times), bar);
  paint();
  root.replaceChildren(frame, list, foot);
  root.dataset.done = value.number;
}

watch("value", draw);
draw();
