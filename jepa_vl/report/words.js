// Words on patches. Data: {grid, colours, layers: [name], images: [{name, source, width, height,
// captions: [{text, words, boxes, layers: [{low, high, maps}]}]}]}; maps are bytes, a map a word.
// The reader chooses image, caption, layer and word; all words stand beside each other, small.

const LARGE = 384, THUMB = 80;

WIDGETS.words = (root, data) => new Words(root, data);

class Words {
  constructor(root, data) {
    this.data = data;
    this.at = { image: 0, caption: 0, layer: 0, word: 0 };
    this.pictures = data.images.map(() => null); // those that are decoded
    const { images, layers } = data;
    const image = choice("Image", images.map(({ name }) => name), (i) => this.turn({ image: i }));
    const caption = choice("Caption", [], (i) => this.turn({ caption: i }));
    const layer = choice("Layer of the predictor", layers, (i) => this.turn({ layer: i }));
    this.captions = caption.select;
    this.words = make("div", { class: "words" });
    this.plain = canvas(LARGE), this.heat = canvas(LARGE);
    this.low = make("span"), this.high = make("span");
    const scale = make("div", { class: "scale" }, this.low, make("span", { class: "ramp" }), this.high);
    const stops = data.colours.map((colour) => `rgb(${colour.join()})`);
    scale.children[1].style.background = `linear-gradient(90deg,${stops.join()})`;
    this.readout = make("output", { class: "readout", "aria-live": "polite" });
    this.stage = make("div", { class: "stage", role: "group", "aria-label": "Map of the word" },
      this.plain, make("div", {}, this.heat, scale), this.readout);
    root.append(
      make("div", { class: "bar" }, image.element, caption.element, layer.element),
      this.stage,
      make("fieldset", {}, make("legend", {}, "Word"), this.words),
    );
    this.heat.addEventListener("pointermove", (event) => this.tell(this.patch(event)));
    this.heat.addEventListener("pointerleave", () => this.tell(null));
    this.turn({ image: 0 });
  }

  /** Shows something else; what hangs on it begins anew. */
  turn(change) {
    Object.assign(this.at, change);
    if ("image" in change) {
      this.at.caption = 0;
      const texts = this.data.images[this.at.image].captions.map(({ text }) => text);
      this.captions.replaceChildren(...texts.map((text, i) => make("option", { value: i }, text)));
    }
    if ("image" in change || "caption" in change) this.list();
    this.draw();
  }

  get image() { return this.data.images[this.at.image]; }
  get caption() { return this.image.captions[this.at.caption]; }
  get layer() { return this.caption.layers[this.at.layer]; }

  /** A radio button for each word of the caption; first the first one whose object is known. */
  list() {
    const { words, boxes } = this.caption, known = boxes.findIndex((box) => box);
    this.at.word = Math.max(0, known);
    this.thumbs = words.map(() => canvas(THUMB));
    this.words.replaceChildren(...words.map((word, i) => {
      const radio = make("input", { type: "radio", name: "word-on-patches", value: i });
      radio.checked = i === this.at.word;
      radio.addEventListener("change", () => this.turn({ word: i }));
      return make("label", { class: "word" }, this.thumbs[i], make("span", {}, radio, word));
    }));
  }

  /** Bytes of a word's map: 0 where no patch is, else 1 to 255 from the least to the greatest. */
  map(word) {
    const { layer } = this, size = this.data.grid ** 2;
    layer.bytes ??= Uint8Array.from(atob(layer.maps), (letter) => letter.charCodeAt(0));
    return layer.bytes.subarray(word * size, (word + 1) * size);
  }

  value(byte) {
    const { low, high } = this.layer;
    return low + ((byte - 1) / 254) * (high - low);
  }

  draw() {
    const { at } = this, picture = this.pictures[at.image];
    this.stage.setAttribute("aria-busy", !picture);
    if (!picture) { // it is drawn when it is there, unless the reader has gone on
      const loading = new Image();
      loading.addEventListener("load", () => {
        this.pictures[at.image] = loading;
        if (this.data.images[at.image].source === loading.src) this.draw();
      });
      loading.src = this.image.source;
      return;
    }
    const { text, words } = this.caption;
    pen(this.plain).drawImage(picture, 0, 0, LARGE, LARGE);
    name(this.plain, `${this.image.name}: ${text}`);
    this.over(this.heat, picture, at.word);
    name(this.heat, `The patches of “${words[at.word]}”, brighter where it is more similar`);
    this.thumbs.forEach((thumb, word) => this.over(thumb, picture, word));
    this.low.textContent = told(this.layer.low);
    this.high.textContent = told(this.layer.high);
    this.tell(null);
  }

  /** A word's map over the picture in grey, and the box of what it names. */
  over(surface, picture, word) {
    const context = pen(surface), side = surface.width, { grid } = this.data;
    const map = this.map(word), none = !map.some((byte) => byte);
    context.drawImage(picture, 0, 0, side, side);
    const pixels = context.getImageData(0, 0, side, side), bytes = pixels.data;
    for (let i = 0; i < bytes.length; i += 4) {
      const grey = (bytes[i] + bytes[i + 1] + bytes[i + 2]) / 3;
      bytes[i] = bytes[i + 1] = bytes[i + 2] = none ? 0.3 * grey + 166 : grey;
    }
    context.putImageData(pixels, 0, 0);
    if (none) return;
    const heat = make("canvas", { width: grid, height: grid }), small = new ImageData(grid, grid);
    map.forEach((byte, i) => {
      const share = (byte - 1) / 254;
      small.data.set([...this.colour(share), 255 * (0.35 + 0.5 * share)], 4 * i);
    });
    heat.getContext("2d").putImageData(small, 0, 0);
    context.imageSmoothingEnabled = true;
    context.drawImage(heat, 0, 0, side, side);
    this.box(context, side, this.caption.boxes[word]);
  }

  colour(share) {
    const { colours } = this.data, place = share * (colours.length - 1), i = Math.floor(place);
    const next = colours[Math.min(i + 1, colours.length - 1)];
    return colours[i].map((channel, k) => channel + (place - i) * (next[k] - channel));
  }

  box(context, side, box) {
    if (!box) return;
    const { width, height } = this.image, [left, top, right, bottom] = box;
    const place = [left / width, top / height, (right - left) / width, (bottom - top) / height];
    for (const [colour, thick, dash] of [["#000", 3, []], ["#fff", 1.5, [5, 4]]]) {
      context.strokeStyle = colour;
      context.lineWidth = (thick * side) / LARGE + 0.5;
      context.setLineDash(dash);
      context.strokeRect(...place.map((share) => share * side));
    }
    context.setLineDash([]);
  }

  patch(event) {
    const box = this.heat.getBoundingClientRect(), { grid } = this.data;
    const at = (share) => Math.max(0, Math.min(grid - 1, Math.floor(share * grid)));
    const row = at((event.clientY - box.top) / box.height);
    return row * grid + at((event.clientX - box.left) / box.width);
  }

  /** The similarity at a patch; without one, where it is greatest and least. */
  tell(patch) {
    const map = this.map(this.at.word), { grid } = this.data;
    const word = `“${this.caption.words[this.at.word]}”`;
    const at = (i) => `${told(this.value(map[i]))} at row ${Math.floor(i / grid) + 1}, ` +
      `column ${(i % grid) + 1}`;
    if (!map.some((byte) => byte)) this.readout.textContent = `${word}: no patch`;
    else if (patch !== null) this.readout.textContent = `${word}: ${at(patch)}`;
    else {
      const most = map.indexOf(Math.max(...map)), least = map.indexOf(Math.min(...map));
      this.readout.textContent = `${word}: greatest ${at(most)}; least ${at(least)} ` +
        `(${grid} × ${grid} patches)`;
    }
  }
}

function canvas(side) {
  return make("canvas", { width: side, height: side });
}

/** What draws on a canvas whose pixels are read again and again. */
function pen(surface) {
  return surface.getContext("2d", { willReadFrequently: true });
}

function name(surface, text) {
  surface.setAttribute("role", "img");
  surface.setAttribute("aria-label", text);
}
