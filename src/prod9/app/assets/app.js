"use strict";
(() => {
  const $ = (id) => document.getElementById(id);
  const TASKS = { label: "make a volume from nothing", inpaint: "draw a region of a scan again", translate: "make a missing modality", control: "make a volume under a segmentation" };
  const COLOURS = [[0, 0, 0], [220, 60, 60], [60, 200, 90], [250, 200, 40], [74, 163, 255]];
  const OWN = { "x-prod9": "1" };
  const uploads = {}; // slot -> what the server said of the file
  let model = null, viewer = null, items = [], running = null;

  const call = async (url, options = {}) => {
    let answer;
    try { answer = await fetch(url, options); } catch { throw new Error("The app does not answer: it has ended, or the connection broke. Start `prod9 app` again."); }
    const content = await answer.json().catch(() => ({ error: `the app answered with ${answer.status}` }));
    if (!answer.ok) throw new Error(content.error);
    return content;
  };
  const fail = (error) => { $("error").textContent = error.message; $("error").hidden = false; $("error").scrollIntoView({ block: "nearest" }); };
  const clear = () => { $("error").hidden = true; };
  const option = (value, text) => { const one = document.createElement("option"); one.value = value; one.textContent = text; return one; };
  const fill = (select, pairs) => select.replaceChildren(...pairs.map(([value, text]) => option(value, text)));

  /* ---- the form ---- */

  const chooseModel = async () => {
    $("go").disabled = true;
    $("model-note").textContent = "Loading …";
    model = null;
    try {
      const wanted = $("model").value, found = await call(`/api/model?name=${encodeURIComponent(wanted)}`);
      if (wanted !== $("model").value) return;
      model = found;
      $("model-note").textContent = model.note;
      fill($("task"), model.tasks.map((task) => [task, TASKS[task]]));
      fill($("label"), model.labels.map((name) => [name, name]));
      $("label").value = model.labels.includes("FLAIR") ? "FLAIR" : model.labels[0];
      arrange();
      $("go").disabled = Boolean(running);
    } catch (error) { $("model-note").textContent = ""; fail(error); }
  };

  const fileInput = (slot, input, note) => input.addEventListener("change", async () => {
    clear();
    delete uploads[slot];
    note.textContent = "";
    const file = input.files[0];
    if (!file) return;
    note.textContent = "Reading …";
    try {
      const sent = await call(`/api/uploads/${encodeURIComponent(file.name)}`, { method: "PUT", headers: OWN, body: file });
      uploads[slot] = sent;
      note.textContent = `${sent.shape.join(" × ")} voxels of ${sent.spacing.join(" × ")} mm`;
      if (slot === "scan" && $("task").value === "inpaint" && model && model.labels.includes(sent.modality)) $("label").value = sent.modality;
      refresh(`${(slot === "mask" && uploads.scan ? uploads.scan : sent).name} (given)`);
    } catch (error) { note.textContent = ""; input.value = ""; fail(error); }
  });

  const arrange = () => {
    const task = $("task").value;
    $("task-row").hidden = model.tasks.length < 2;
    $("label-row").hidden = false;
    $("label-words").textContent = { translate: "Modality to make", inpaint: "Modality of the scan" }[task] || "Modality";
    $("sources").hidden = task !== "translate";
    $("scan-row").hidden = !["inpaint", "control"].includes(task);
    $("scan-words").textContent = task === "inpaint" ? "Scan" : "Scan of the segmentation, which says where the head is (optional)";
    $("labels-hint").hidden = task !== "control";
    $("mask-row").hidden = !["inpaint", "control"].includes(task);
    $("mask-words").textContent = task === "inpaint" ? "Region to draw again (mask on the scan's voxels)" : "Segmentation to follow";
    $("resample-row").hidden = !["translate", "inpaint"].includes(task);
    if (task !== "translate") return;
    const names = model.labels.filter((name) => name !== $("label").value);
    const there = new Set([...$("source-rows").children].map((row) => row.dataset.name));
    for (const row of [...$("source-rows").children]) if (!names.includes(row.dataset.name)) { delete uploads[row.dataset.name]; row.remove(); }
    for (const name of names.filter((one) => !there.has(one))) {
      const row = document.createElement("label"), input = document.createElement("input"), note = document.createElement("span");
      row.dataset.name = name;
      row.textContent = name;
      input.type = "file";
      input.accept = ".nii,.gz";
      note.className = "hint";
      row.append(input, note);
      fileInput(name, input, note);
      $("source-rows").append(row);
    }
  };

  const request = () => {
    const task = $("task").value, id = (slot) => (uploads[slot] ? uploads[slot].id : null), wanted = { model: model.name, task, label: $("label").value };
    if (task === "translate") {
      wanted.sources = Object.fromEntries([...$("source-rows").children].map((row) => row.dataset.name).filter((name) => uploads[name]).map((name) => [name, id(name)]));
      if (!Object.keys(wanted.sources).length) throw new Error("Choose at least one scan of the patient first.");
    }
    if (["inpaint", "control"].includes(task)) wanted.scan = id("scan");
    if (task === "inpaint" && !wanted.scan) throw new Error("Choose the scan first.");
    if (["inpaint", "control"].includes(task)) { wanted.mask = id("mask"); if (!wanted.mask) throw new Error(task === "inpaint" ? "Choose the mask first." : "Choose the segmentation first."); }
    for (const [name, words] of [["num-samples", "Volumes"], ["seed", "Seed"]]) if (!$(name).checkValidity() || $(name).value === "") throw new Error(`${words}: expected a whole number from ${$(name).min} to ${$(name).max}.`);
    return { ...wanted, num_samples: Number($("num-samples").value), seed: Number($("seed").value), resample: $("resample").checked };
  };

  $("form").addEventListener("submit", async (event) => {
    event.preventDefault();
    clear();
    try {
      running = await call("/api/jobs", { method: "POST", headers: { ...OWN, "content-type": "application/json" }, body: JSON.stringify(request()) });
      watch();
    } catch (error) { fail(error); }
  });
  $("cancel").addEventListener("click", async () => {
    $("cancel").disabled = true;
    try { await call(`/api/jobs/${running.id}/cancel`, { method: "POST", headers: OWN }); } catch (error) { fail(error); }
  });

  /* ---- jobs ---- */

  const watch = async () => {
    $("go").disabled = true;
    $("cancel").hidden = $("progress").hidden = false;
    $("cancel").disabled = false;
    try {
      while (running) {
        const { jobs } = await call("/api/jobs"), job = jobs.find((one) => one.id === running.id);
        if (!job) throw new Error("The app was started anew, and the job is gone. Generate again.");
        $("bar").value = job.share;
        $("progress-words").textContent = `${Math.round(100 * job.share)}% after ${job.seconds} s`;
        if (job.state !== "running") {
          running = null;
          if (job.state === "failed") fail(new Error(job.message));
          list(jobs);
          if (job.state === "done") await refresh(job.results[0].name, job.id);
        } else await new Promise((next) => setTimeout(next, 300));
      }
    } catch (error) { running = null; fail(error); }
    $("cancel").hidden = $("progress").hidden = true;
    $("go").disabled = !model;
  };

  const list = (jobs) => {
    const number = new Map(jobs.map((job, k) => [job.id, k + 1]));
    items = jobs.flatMap((job) => job.results.map((result) => ({ ...result, job: job.id, text: `${number.get(job.id)}: ${result.name}` })));
    const link = (url, text) => { const one = document.createElement("a"); one.href = url; one.download = ""; one.textContent = text; return one; };
    const rows = jobs.filter((job) => job.state !== "running").reverse().map((job) => {
      const row = document.createElement("li");
      row.append(`${number.get(job.id)}: ${job.title} (${job.seconds} s): `);
      if (job.state === "done") job.results.forEach((result) => row.append(link(result.url, `download ${result.name}`), " · "));
      if (job.record) row.append(link(job.record, "what was used (JSON)"));
      for (const text of job.notes) { const note = document.createElement("p"); note.className = "note"; note.textContent = `Note: ${text}.`; row.append(note); }
      if (job.state !== "done") { row.className = "bad"; row.append(job.state === "failed" ? `failed: ${job.message}` : "cancelled"); }
      return row;
    });
    if (rows.length) $("jobs").replaceChildren(...rows);
  };

  /* ---- the viewer ---- */

  const refresh = async (wanted, job) => {
    const { mask } = uploads, over = (slot, one) => (slot === "scan" && mask && mask.shape.join() === one.shape.join() ? mask.url : null);
    const given = Object.entries(uploads).filter(([slot]) => slot !== "mask").map(([slot, one]) => ({ name: `${one.name} (given)`, text: `${one.name} (given)`, url: one.url, mask: over(slot, one) }));
    const all = [...items, ...given], scans = all.map((one, k) => [String(k), one.text]);
    fill($("shown"), scans);
    $("shown").disabled = !all.length;
    const found = all.findIndex((one) => one.name === wanted && (!job || one.job === job));
    if (all.length) $("shown").value = String(found < 0 ? all.length - 1 : found);
    await show(all[Number($("shown").value)]);
    $("shown").onchange = () => show(all[Number($("shown").value)]).catch(fail);
  };

  const encoded = async (url) => {
    const answer = await fetch(url);
    if (!answer.ok) throw new Error("The file is no longer there: the app was started anew. Generate again.");
    const bytes = new Uint8Array(await answer.arrayBuffer()), parts = [];
    for (let k = 0; k < bytes.length; k += 32768) parts.push(String.fromCharCode(...bytes.subarray(k, k + 32768)));
    return btoa(parts.join(""));
  };

  /* Where the crosshair shows most of a mask: its voxel nearest to the mean of all, as a share of each axis. */
  const middle = (mask) => {
    const [, nx, ny] = mask.hdr.dims, inside = [], mean = [0, 0, 0];
    mask.img.forEach((value, k) => { if (value) inside.push([k % nx, Math.floor(k / nx) % ny, Math.floor(k / (nx * ny))]); });
    if (!inside.length) return null;
    for (const voxel of inside) voxel.forEach((v, axis) => { mean[axis] += v / inside.length; });
    const far = (voxel) => voxel.reduce((sum, v, axis) => sum + (v - mean[axis]) ** 2, 0);
    const [x, y, z] = inside.reduce((best, voxel) => (far(voxel) < far(best) ? voxel : best));
    return viewer.mm2frac(mask.hdr.affine.slice(0, 3).map(([a, b, c, d]) => a * x + b * y + c * z + d));
  };

  const show = async (item) => {
    if (!item || !viewer) return;
    const { NVImage } = globalThis.niivue;
    let at = [...viewer.scene.crosshairPos];
    while (viewer.volumes.length) viewer.removeVolumeByIndex(viewer.volumes.length - 1);
    viewer.addVolume(await NVImage.loadFromBase64({ base64: await encoded(item.url), name: item.name.replace(" (given)", ""), colormap: "gray", percentileFrac: 0.005 }));
    $("overlay-row").hidden = !item.mask;
    if (item.mask) {
      const mask = await NVImage.loadFromBase64({ base64: await encoded(item.mask), name: item.mask.split("/").at(-1), opacity: Number($("overlay").value) });
      const map = { R: [], G: [], B: [], A: [], I: [], labels: COLOURS.map((_, k) => (k ? `label ${k}` : "")) };
      COLOURS.forEach(([r, g, b], k) => { map.R.push(r); map.G.push(g); map.B.push(b); map.A.push(k ? 255 : 0); map.I.push(k); });
      mask.setColormapLabel(map);
      viewer.addVolume(mask);
      at = middle(mask) || at;
      viewer.setOpacity(1, Number($("overlay").value));
    }
    viewer.scene.crosshairPos = at;
    viewer.drawScene();
    $("viewer-note").hidden = true;
    const { gl } = viewer, pixels = new Uint8Array(4 * gl.drawingBufferWidth * gl.drawingBufferHeight);
    gl.readPixels(0, 0, gl.drawingBufferWidth, gl.drawingBufferHeight, gl.RGBA, gl.UNSIGNED_BYTE, pixels);
    const seen = new Set();
    for (let k = 0; k < pixels.length; k += 4) seen.add(pixels[k]);
    document.body.dataset.drawn = String(seen.size > 30);
    document.body.dataset.shown = item.name;
  };

  const startViewer = async () => {
    const probe = document.createElement("canvas").getContext("webgl2");
    if (!probe) { $("viewer-note").textContent = "This browser offers no WebGL 2, which the viewer needs. Download the results and open them in 3D Slicer or ITK-SNAP."; document.body.dataset.viewer = "none"; return; }
    probe.getExtension("WEBGL_lose_context")?.loseContext();
    const { Niivue } = globalThis.niivue;
    viewer = new Niivue({ backColor: [0.043, 0.059, 0.078, 1], show3Dcrosshair: true, dragAndDropEnabled: false, logLevel: "error", crosshairColor: [0.5, 0.84, 0.87, 0.6], crosshairWidth: 0.35, multiplanarShowRender: 0, multiplanarLayout: 2, isOrientationTextVisible: true, isCornerOrientationText: true, isRuler: true, rulerWidth: 2 });
    await viewer.attachToCanvas($("canvas"));
    viewer.setSliceType(3);
    $("slices").addEventListener("change", () => viewer.setSliceType(Number($("slices").value)));
    $("radiological").addEventListener("change", () => viewer.setRadiologicalConvention($("radiological").checked));
    $("overlay").addEventListener("input", () => { if (viewer.volumes.length > 1) viewer.setOpacity(1, Number($("overlay").value)); });
    document.body.dataset.viewer = "niivue";
  };

  const start = async () => {
    $("model").addEventListener("change", () => { clear(); chooseModel(); });
    $("task").addEventListener("change", arrange);
    $("label").addEventListener("change", arrange);
    for (const slot of ["scan", "mask"]) fileInput(slot, $(slot), document.querySelector(`[data-of=${slot}]`));
    await startViewer().catch((error) => { $("viewer-note").textContent = `The viewer could not start (${error.message}).`; });
    const { models } = await call("/api/models");
    fill($("model"), models.map((name) => [name, name]));
    /* A page that is loaded again shows what was made before. */
    const { jobs } = await call("/api/jobs");
    list(jobs);
    running = jobs.find((job) => job.state === "running") || null;
    await chooseModel();
    if (items.length) await refresh(items.at(-1).name, items.at(-1).job);
    document.body.dataset.ready = "true";
    if (running) watch();
  };
  start().catch(fail);
})();
