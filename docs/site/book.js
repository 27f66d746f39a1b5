// Annotated sources: notes stand beside their lines, pushed down where two would overlap, so that
// the code has no gaps; and the bar shows where in the script one is.

for (const box of document.querySelectorAll(".annotated")) {
  const rows = [...box.querySelectorAll(".row")].map((row) => [row, row.firstElementChild]);
  const place = () => {
    box.classList.toggle("wide", box.clientWidth > 950);
    let free = 0;
    for (const [row, notes] of rows) {
      const down = Math.max(free - row.offsetTop, 0);
      notes.style.transform = box.classList.contains("wide") ? `translateY(${down}px)` : "";
      if (notes.offsetHeight) free = row.offsetTop + down + notes.offsetHeight;
    }
    box.style.minHeight = box.classList.contains("wide") ? `${free}px` : "";
  };
  place();
  new ResizeObserver(place).observe(box);
  box.addEventListener("toggle", place, true); // a note was folded or unfolded

  const links = [...box.querySelectorAll(".where a")];
  const here = () => {
    const passed = (link) => document.querySelector(link.hash).getBoundingClientRect().top < 200;
    const current = links.filter(passed).pop() ?? links[0];
    for (const link of links) link.classList.toggle("here", link === current);
  };
  if (links.length) {
    here();
    addEventListener("scroll", here, { passive: true });
  }
}
