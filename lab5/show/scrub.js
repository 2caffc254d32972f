// Moves one scrub: play, slider, keys, and the cell under the pointer. `box` is its element; nothing else is touched.
(box => {
  if (box.classList.contains("live")) return;
  const { labels, reels } = JSON.parse(box.dataset.reels);
  const range = box.querySelector("input"), button = box.querySelector("button"), step = box.querySelector(".bar output");
  const windows = [...box.querySelectorAll(".window")], frames = [...box.querySelectorAll(".frame")];
  let timer = null, aimed = null, pinned = false;

  const told = (reel, cell) => {
    const now = +range.value, fixed = reel.fixed[cell];
    if (fixed === 0) return `token ${reel.tokens[now][cell]}, known from the start`;
    const when = fixed < 0 ? "never fixed" : `fixed at step ${fixed}`;
    if (now === 0) return `masked; ${when}`;
    const token = `${reel.tokens[now][cell]}, confidence ${reel.percent[now][cell]} %`;
    return now < fixed ? `guess ${token}; ${when}` : `token ${token}; ${when}`;
  };
  const show = () => {
    box.style.setProperty("--now", range.value);
    step.textContent = labels[range.value];
    range.setAttribute("aria-valuetext", labels[range.value]);
    box.classList.toggle("aimed", aimed !== null);
    box.querySelectorAll(".cell").forEach((cell, i) => {
      const place = aimed === null ? "" : `row ${Math.floor(aimed / 16) + 1}, column ${aimed % 16 + 1}: `;
      cell.textContent = place && place + told(reels[i], aimed);
    });
    if (aimed !== null) frames.forEach(frame => {
      frame.style.left = `${6.25 * (aimed % 16)}%`;
      frame.style.top = `${6.25 * Math.floor(aimed / 16)}%`;
    });
  };
  const rest = () => { clearInterval(timer); timer = null; button.textContent = "\u25b6"; button.ariaLabel = "play"; };
  const play = () => {
    if (timer) return rest();
    if (range.value === range.max) range.value = 0;
    show();
    button.textContent = "\u275a\u275a"; button.ariaLabel = "pause";
    timer = setInterval(() => {
      if (!box.isConnected || range.value === range.max) return rest();
      range.value++; show();
      if (range.value === range.max) rest();
    }, 500);
  };
  const cellAt = event => {
    const { left, top, width, height } = event.currentTarget.getBoundingClientRect();
    const part = (at, size) => Math.max(0, Math.min(15, Math.floor(16 * at / size)));
    return 16 * part(event.clientY - top, height) + part(event.clientX - left, width);
  };
  const moves = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };

  windows.forEach(view => {
    view.onpointermove = event => { if (!pinned) { aimed = cellAt(event); show(); } };
    view.onpointerleave = () => { if (!pinned) { aimed = null; show(); } };
    view.onclick = event => {
      const cell = cellAt(event);
      pinned = !(pinned && cell === aimed); // a finger that lets go of a cell points at none
      aimed = pinned || event.pointerType === "mouse" ? cell : null; show(); range.focus({ preventScroll: true });
    };
  });
  button.onclick = play;
  range.oninput = () => { rest(); show(); };
  box.onkeydown = event => {
    if (event.shiftKey && moves[event.key]) {
      const clamp = value => Math.max(0, Math.min(15, value)), [down, right] = moves[event.key];
      aimed = aimed === null ? 136 : 16 * clamp(Math.floor(aimed / 16) + down) + clamp(aimed % 16 + right);
      pinned = true;
    } else if (event.key === "Escape") { aimed = null; pinned = false; }
    else if (event.key === " " && event.target !== button) play();
    else return;
    event.preventDefault(); show();
  };
  box.classList.add("live"); rest(); show();
})
