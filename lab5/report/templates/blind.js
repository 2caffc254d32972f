// Shows pair after pair, counts what is picked, and says at the end how sure one can be. Nothing is stored or sent.
(() => {
  const element = id => document.getElementById(id);
  const { pairs, classical } = JSON.parse(element("pairs").textContent);
  const game = element("blind"), tally = element("tally");
  const picture = id => element(id).querySelector("img");
  let judged, preferred; // pairs so far, and those in which ours was picked

  const show = () => {
    const pair = pairs[judged];
    element("place").textContent = `Pair ${judged + 1} of ${pairs.length}`;
    element("end").disabled = judged === 0;
    picture("given").src = pair.given;
    picture("left").src = pair[pair.left];
    picture("right").src = pair[pair.left === "ours" ? "classical" : "ours"];
  };
  const begin = () => { judged = preferred = 0; tally.hidden = true; game.hidden = false; show(); };
  const end = () => {
    const [low, high] = wilson(preferred, judged), percent = share => `${Math.round(100 * share)} %`;
    const verdict = low > 0.5 ? "you prefer MaskGIT" : high < 0.5 ? `you prefer ${classical}`
      : "too few choices, or too even, to say which you prefer";
    element("result").textContent = `MaskGIT in ${preferred} of ${judged} pairs, ${classical} in ${judged - preferred}: `
      + `${percent(preferred / judged)} for MaskGIT, with a 95 % interval (Wilson) from ${percent(low)} to `
      + `${percent(high)}; ${verdict}.`;
    game.hidden = true; tally.hidden = false; element("result").focus();
  };
  const pick = side => {
    preferred += (pairs[judged].left === "ours") === (side === "left");
    judged++;
    if (judged < pairs.length) show(); else end();
  };
  // Wilson 1927: the shares p from which k of n is not further away than 1.96 of p's own standard errors.
  const wilson = (k, n) => {
    const z = 1.959964, middle = (k + z * z / 2) / (n + z * z);
    const half = z / (n + z * z) * Math.sqrt(k * (n - k) / n + z * z / 4);
    return [middle - half, middle + half];
  };

  for (const side of ["left", "right"]) element(side).onclick = () => pick(side);
  element("end").onclick = end;
  element("again").onclick = () => { begin(); element("left").focus(); };
  addEventListener("keydown", event => {
    const side = { ArrowLeft: "left", ArrowRight: "right" }[event.key];
    if (!side || game.hidden || event.repeat || event.altKey || event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    pick(side);
  });
  begin();
})();
