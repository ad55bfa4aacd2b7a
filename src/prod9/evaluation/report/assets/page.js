"use strict";
(() => {
  const scans = JSON.parse(document.getElementById("scans").textContent);
  const note = document.getElementById("viewer-note");
  const selects = [...document.querySelectorAll("select[data-pane]")];
  const canvases = selects.map((_, k) => document.getElementById(`canvas-${k}`));
  const overlay = document.getElementById("overlay");
  const slices = document.getElementById("slices");
  const linked = document.getElementById("linked");
  const radiological = document.getElementById("radiological");
  const COLOURS = [[0, 0, 0], [220, 60, 60], [60, 200, 90], [250, 200, 40]];

  const bytesOf = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const unzipped = async (text) =>
    new Uint8Array(await new Response(new Blob([bytesOf(text)]).stream().pipeThrough(new DecompressionStream("gzip"))).arrayBuffer());
  const opacity = () => (overlay ? Number(overlay.value) : 0);
  const state = (name, drawn) => {
    document.body.dataset.viewer = name;
    document.body.dataset.drawn = String(drawn);
    document.body.dataset.ready = String(Math.round(performance.now()));
    const loaded = performance.getEntriesByType("resource").map((entry) => entry.name);
    document.body.dataset.requests = String(loaded.filter((url) => !/^(data|blob):/.test(url)).length);
  };
  const varied = (pixels) => {
    let low = 255, high = 0;
    for (let k = 0; k < pixels.length; k += 4) { low = Math.min(low, pixels[k]); high = Math.max(high, pixels[k]); }
    return high - low > 30;
  };

  const hasWebGL = () => {
    try {
      const gl = document.createElement("canvas").getContext("webgl2");
      if (gl) gl.getExtension("WEBGL_lose_context")?.loseContext();
      return Boolean(gl);
    } catch { return false; }
  };

  const loadNiiVue = async () => {
    const url = URL.createObjectURL(new Blob([await unzipped(document.getElementById("niivue").textContent.trim())], { type: "text/javascript" }));
    await new Promise((done, fail) => {
      const script = document.createElement("script");
      script.onload = done;
      script.onerror = () => fail(new Error("the viewer's script did not load"));
      script.src = url;
      document.head.append(script);
    });
    URL.revokeObjectURL(url);
    return globalThis.niivue;
  };

  const startNiiVue = async () => {
    const { Niivue, NVImage } = await loadNiiVue();
    const viewers = [];
    let place = null;
    const labels = { R: [], G: [], B: [], A: [], I: [], labels: ["", "necrotic core", "oedema", "enhancing tumour"] };
    COLOURS.forEach(([r, g, b], k) => { labels.R.push(r); labels.G.push(g); labels.B.push(b); labels.A.push(k ? 255 : 0); labels.I.push(k); });
    const show = async (k) => {
      const scan = scans[Number(selects[k].value)], viewer = viewers[k];
      while (viewer.volumes.length) viewer.removeVolumeByIndex(viewer.volumes.length - 1);
      viewer.addVolume(await NVImage.loadFromBase64({ base64: scan.image, name: `${scan.name}.nii.gz`, colormap: "gray", cal_min: 0, cal_max: 255 }));
      if (scan.seg) {
        const seg = await NVImage.loadFromBase64({ base64: scan.seg, name: `${scan.name}-seg.nii.gz`, opacity: opacity() });
        seg.setColormapLabel(labels);
        viewer.addVolume(seg);
        viewer.setOpacity(1, opacity());
      }
      if (scan.centre) place = scan.centre;
      if (place) (linked.checked ? viewers : [viewer]).filter((one) => one.volumes.length).forEach((one) => { one.scene.crosshairPos = one.mm2frac(place); one.drawScene(); });
      viewer.drawScene();
    };
    for (const canvas of canvases) {
      const viewer = new Niivue({ backColor: [0.043, 0.059, 0.078, 1], show3Dcrosshair: true, isColorbar: false, dragAndDropEnabled: false, logLevel: "error", crosshairColor: [0.5, 0.84, 0.87, 0.6], crosshairWidth: 0.35, multiplanarShowRender: 0, multiplanarLayout: 2, isOrientationTextVisible: true, isRadiologicalConvention: radiological.checked, isRuler: true, rulerWidth: 2 });
      await viewer.attachToCanvas(canvas);
      viewers.push(viewer);
    }
    const link = () => viewers.forEach((viewer, k) => viewer.broadcastTo(linked.checked ? viewers.filter((_, j) => j !== k) : [], { "2d": true, "3d": true }));
    for (let k = 0; k < viewers.length; k += 1) {
      await show(k);
      viewers[k].setSliceType(Number(slices.value));
      selects[k].addEventListener("change", () => show(k));
    }
    link();
    linked.addEventListener("change", link);
    radiological.addEventListener("change", () => viewers.forEach((viewer) => viewer.setRadiologicalConvention(radiological.checked)));
    slices.addEventListener("change", () => viewers.forEach((viewer) => viewer.setSliceType(Number(slices.value))));
    overlay?.addEventListener("input", () => viewers.forEach((viewer) => { if (viewer.volumes.length > 1) viewer.setOpacity(1, opacity()); }));
    const drawn = viewers.every((viewer) => {
      viewer.drawScene();
      const { gl } = viewer, pixels = new Uint8Array(4 * gl.drawingBufferWidth * gl.drawingBufferHeight);
      gl.readPixels(0, 0, gl.drawingBufferWidth, gl.drawingBufferHeight, gl.RGBA, gl.UNSIGNED_BYTE, pixels);
      return varied(pixels);
    });
    state("niivue", drawn);
  };

  /* Without WebGL: three planes on a plain canvas, moved by clicks. */
  const startCanvas = async () => {
    note.textContent = "This browser offers no WebGL 2: a plain viewer is shown instead.";
    slices.disabled = true;
    const panes = canvases.map(() => ({ image: null, seg: null, at: [0.5, 0.5, 0.5] }));
    const parse = async (text) => {
      const bytes = await unzipped(text), view = new DataView(bytes.buffer);
      const size = [42, 44, 46].map((place) => view.getInt16(place, true));
      const step = [80, 84, 88].map((place) => view.getFloat32(place, true));
      const origin = [292, 308, 324].map((place) => view.getFloat32(place, true)); // last column of the s-form
      return { size, step, origin, data: bytes.subarray(view.getFloat32(108, true)) };
    };
    const planes = [[0, 1, 2], [0, 2, 1], [1, 2, 0]];
    const boxes = (canvas, image) => {
      const mm = image.size.map((n, a) => n * image.step[a]);
      const wide = planes.reduce((sum, [x]) => sum + mm[x], 0), high = Math.max(...planes.map(([, y]) => mm[y]));
      const scale = Math.min(canvas.width / wide, canvas.height / high);
      let left = (canvas.width - wide * scale) / 2;
      return planes.map(([x, y, across]) => {
        const box = { x, y, across, left, width: mm[x] * scale, height: mm[y] * scale, top: (canvas.height - mm[y] * scale) / 2 };
        left += box.width;
        return box;
      });
    };
    const ENDS = ["LR", "PA", "IS"];
    const letters = (context, box) => {
      const [low, high] = box.x === 0 && radiological.checked ? "RL" : ENDS[box.x], middle = box.left + box.width / 2, half = box.top + box.height / 2;
      context.fillStyle = "#9fb0bc"; context.font = "12px sans-serif"; context.textAlign = "center";
      context.fillText(low, box.left + 8, half); context.fillText(high, box.left + box.width - 8, half);
      context.fillText(ENDS[box.y][1], middle, box.top + 14); context.fillText(ENDS[box.y][0], middle, box.top + box.height - 6);
    };
    const draw = (k) => {
      const { image, seg, at } = panes[k], canvas = canvases[k], context = canvas.getContext("2d");
      const stride = [1, image.size[0], image.size[0] * image.size[1]];
      canvas.width = canvas.clientWidth; canvas.height = canvas.clientHeight;
      panes[k].drawn = false;
      for (const box of boxes(canvas, image)) {
        const w = image.size[box.x], h = image.size[box.y], pixels = new ImageData(w, h);
        const base = Math.min(image.size[box.across] - 1, Math.floor(at[box.across] * image.size[box.across])) * stride[box.across];
        for (let j = 0; j < h; j += 1) for (let i = 0; i < w; i += 1) {
          const column = box.x === 0 && radiological.checked ? w - 1 - i : i;
          const voxel = base + column * stride[box.x] + (h - 1 - j) * stride[box.y], label = seg ? seg.data[voxel] : 0;
          const grey = image.data[voxel], mix = label ? opacity() : 0, colour = COLOURS[label] || COLOURS[1];
          pixels.data.set([0, 1, 2].map((c) => grey * (1 - mix) + colour[c] * mix).concat(255), 4 * (j * w + i));
        }
        panes[k].drawn ||= varied(pixels.data);
        const slice = new OffscreenCanvas(w, h);
        slice.getContext("2d").putImageData(pixels, 0, 0);
        context.drawImage(slice, box.left, box.top, box.width, box.height);
        letters(context, box);
      }
    };
    const show = async (k) => {
      const scan = scans[Number(selects[k].value)];
      panes[k].image = await parse(scan.image);
      panes[k].seg = scan.seg ? await parse(scan.seg) : null;
      if (scan.centre) (linked.checked ? panes : [panes[k]]).forEach((pane) => { if (pane.image) pane.at = at(scan.centre, pane.image); });
      else if (linked.checked && k) panes[k].at = [...panes[0].at];
      all();
    };
    const at = (mm, image) => mm.map((value, a) => Math.min(0.999, Math.max(0, (value - image.origin[a]) / (image.size[a] * image.step[a]) + 0.5 / image.size[a])));
    const all = () => panes.forEach((pane, k) => { if (pane.image) draw(k); });
    for (let k = 0; k < panes.length; k += 1) {
      await show(k);
      selects[k].addEventListener("change", () => show(k));
      canvases[k].addEventListener("click", (event) => {
        const box = boxes(canvases[k], panes[k].image).find(({ left, width }) => event.offsetX >= left && event.offsetX < left + width);
        if (!box) return;
        const moved = linked.checked ? panes : [panes[k]];
        const share = (event.offsetX - box.left) / box.width;
        moved.forEach(({ at }) => { at[box.x] = Math.min(0.999, box.x === 0 && radiological.checked ? 1 - share : share); at[box.y] = Math.min(0.999, Math.max(0, 1 - (event.offsetY - box.top) / box.height)); });
        all();
      });
    }
    overlay?.addEventListener("input", all);
    radiological.addEventListener("change", all);
    addEventListener("resize", all);
    state("canvas", panes.every((pane) => pane.drawn));
  };

  (hasWebGL() ? startNiiVue() : startCanvas()).catch((error) => {
    note.textContent = `The viewer could not start (${error.message}); the pictures below show the same volumes.`;
    state("failed", false);
  });
})();
