// The page is whole without this: it adds zoom buttons, and says under a chart what the pointer or a finger is on.
"use strict";
for (const figure of document.querySelectorAll(".gantt")) {
  const scroll = figure.querySelector(".scroll");
  const track = figure.querySelector(".track");
  const readout = document.createElement("p");
  readout.className = "readout";
  figure.append(readout);

  const show = (event) => {
    const title = event.target.querySelector && event.target.querySelector("title");
    if (title && event.target.tagName !== "svg") readout.textContent = title.textContent;
  };
  track.addEventListener("pointerover", show);
  track.addEventListener("pointerdown", show);

  let zoom = 1;
  // What is under `x` (pixels from the left of the visible part) stays there.
  const zoomTo = (level, x) => {
    const next = Math.min(64, Math.max(1, level));
    const at = (scroll.scrollLeft + x) * next / zoom;
    zoom = next;
    track.style.width = zoom * 100 + "%";
    scroll.scrollLeft = at - x;
  };
  const buttons = document.createElement("div");
  buttons.className = "zoom";
  for (const [label, name, factor] of [["−", "zoom out", 0.5], ["+", "zoom in", 2]]) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = label;
    button.setAttribute("aria-label", name);
    button.addEventListener("click", () => zoomTo(zoom * factor, scroll.clientWidth / 2));
    buttons.append(button);
  }
  figure.prepend(buttons);
  // Plain scrolling stays the page's; with Ctrl it zooms, as on maps.
  scroll.addEventListener("wheel", (event) => {
    if (!event.ctrlKey) return;
    event.preventDefault();
    zoomTo(zoom * (event.deltaY < 0 ? 1.25 : 0.8), event.clientX - scroll.getBoundingClientRect().left);
  }, { passive: false });
}
