// What a page of the report does by itself: fold all code, enlarge figures, say where in the contents one is.
(() => {
  const folds = [...document.querySelectorAll("details.code")], unfold = document.getElementById("unfold");
  unfold.hidden = folds.length === 0;
  unfold.onclick = () => {
    const open = folds.some(fold => !fold.open);
    folds.forEach(fold => { fold.open = open; });
    unfold.textContent = open ? "Hide all code" : "Show all code";
  };

  const dialog = document.querySelector("dialog");
  document.querySelectorAll(".output_png img, img.zoom").forEach(image => {
    const button = document.createElement("button");
    button.type = "button"; button.className = "enlarge"; button.title = "enlarge";
    image.replaceWith(button); button.append(image);
    button.onclick = () => { dialog.append(image.cloneNode()); dialog.showModal(); };
  });
  dialog.onclick = () => dialog.close();
  dialog.onclose = () => dialog.querySelector("img").remove();

  const links = [...document.querySelectorAll("nav a[href^='#']")];
  const places = links.map(link => document.getElementById(decodeURIComponent(link.hash.slice(1))));
  const mark = () => {
    const above = places.filter(place => place && place.getBoundingClientRect().top < 120);
    const now = places.lastIndexOf(above[above.length - 1] || places.find(Boolean));
    links.forEach((link, i) => i === now ? link.setAttribute("aria-current", "true") : link.removeAttribute("aria-current"));
  };
  if (links.length) { addEventListener("scroll", mark, { passive: true }); mark(); }
})();
