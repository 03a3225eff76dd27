// Whose keys these are, what a slider is called, and what is read out: what ipywidgets cannot tell the page.

/** Set an attribute only if that changes it, as an observer watches. */
function set(node, name, value) {
  if (value && node.getAttribute(name) !== value) node.setAttribute(name, value);
}

function describe(explorer) {
  set(explorer.querySelector(".swarmkv-message"), "aria-live", "polite");
  for (const row of explorer.querySelectorAll(".widget-inline-hbox")) {
    const part = (selector) => row.querySelector(selector);
    const [label, shown, slider, bar] = [".widget-label", ".widget-readout", ".noUi-handle", ".progress"].map(part);
    if (slider) {
      set(slider, "aria-label", label?.textContent);
      set(slider, "aria-valuetext", shown?.textContent); // a selection slider would say its index
    }
    if (bar) {
      set(bar, "role", "progressbar");
      set(bar, "aria-label", label?.textContent);
      set(bar, "aria-valuenow", `${Math.round(parseFloat(bar.firstElementChild.style.width) || 0)}`);
    }
  }
}

/** JupyterLab's shortcuts begin at the focused node, and end at once where that node has this attribute. */
function keep(event) {
  const writes = event.target.matches?.("textarea, input:not([type=checkbox]), [contenteditable]");
  const own = event.target.closest?.(".swarmkv-explorer") && (writes || !(event.ctrlKey || event.metaKey));
  if (own) event.target.setAttribute("data-lm-suppress-shortcuts", "true");
  else event.target.removeAttribute?.("data-lm-suppress-shortcuts");
}

function render({ el }) {
  el.style.display = "none";
  const watched = { subtree: true, childList: true, characterData: true, attributeFilter: ["aria-valuetext", "style"] };
  let explorer, gone;
  const observer = new MutationObserver(() => describe(explorer));
  (function begin() {
    explorer = el.closest(".swarmkv-explorer");
    if (gone) return;
    if (!explorer) return void requestAnimationFrame(begin); // it is not in the page yet
    describe(explorer);
    observer.observe(explorer, watched);
    window.addEventListener("keydown", keep, true); // the same function again is added once
  })();
  return () => {
    gone = true;
    observer.disconnect();
  };
}

export default { render };
