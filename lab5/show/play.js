// A picture to draw a hole on. `box` is its element; each finished stroke goes, as 64 rows of 16 hexadecimal digits,
// into the text field beside it, which the kernel listens to.
(box => {
  const canvas = box.querySelector("canvas"), pen = canvas.getContext("2d");
  const field = box.closest(".lab5-play").querySelector(".lab5-hole textarea");
  const hole = [...box.dataset.hole].flatMap(digit => [8, 4, 2, 1].map(bit => (parseInt(digit, 16) & bit) > 0));
  let before = null;

  const show = () => {
    const image = pen.createImageData(64, 64);
    hole.forEach((missing, i) => { if (missing) image.data.set([128, 128, 128, 255], 4 * i); });
    pen.putImageData(image, 0, 0);
  };
  const at = event => {
    const { left, top, width, height } = canvas.getBoundingClientRect();
    return [64 * (event.clientX - left) / width, 64 * (event.clientY - top) / height];
  };
  const stroke = (x, y) => {
    const radius = +box.querySelector("select").value, missing = !box.querySelector("[type=checkbox]").checked;
    const [fromX, fromY] = before || [x, y], steps = Math.ceil(Math.hypot(x - fromX, y - fromY)) || 1;
    for (let step = 1; step <= steps; step++) {
      const centreX = fromX + (x - fromX) * step / steps, centreY = fromY + (y - fromY) * step / steps;
      for (let row = 0; row < 64; row++) for (let column = 0; column < 64; column++)
        if (Math.hypot(column + .5 - centreX, row + .5 - centreY) <= radius) hole[64 * row + column] = missing;
    }
    before = [x, y]; show();
  };
  const send = () => {
    let digits = "";
    for (let i = 0; i < 4096; i += 4) digits += (8 * hole[i] + 4 * hole[i + 1] + 2 * hole[i + 2] + hole[i + 3]).toString(16);
    field.value = digits;
    field.dispatchEvent(new Event("input", { bubbles: true }));
    field.dispatchEvent(new Event("change", { bubbles: true }));
  };
  canvas.onpointerdown = event => {
    if (!event.isPrimary || event.button) return; // one finger, and the left button
    canvas.setPointerCapture(event.pointerId); before = null; stroke(...at(event));
  };
  canvas.onpointermove = event => { if (canvas.hasPointerCapture(event.pointerId)) stroke(...at(event)); };
  canvas.onlostpointercapture = send; // a stroke that ends, or that the system ends
  show();
})
