// Asks the server for the page every few seconds, and replaces the parts that differ. What the reader looks at stays in
// its place, also within a text that scrolls.
(() => {
  const everyMs = 3000;
  let tag = null;

  function say(text) {
    const link = document.getElementById("link");
    if (link) link.textContent = text;
  }

  // The first section that reaches below the top of the window.
  function inView() {
    const sections = [...document.querySelectorAll("main > section")];
    return sections.find((section) => section.getBoundingClientRect().bottom > 0);
  }

  function replacePart(old, fresh) {
    if (old && fresh && old.outerHTML !== fresh.outerHTML) old.replaceWith(document.importNode(fresh, true));
  }

  function show(text) {
    const page = new DOMParser().parseFromString(text, "text/html");
    const seen = window.scrollY > 0 ? inView() : undefined;
    const before = seen ? seen.getBoundingClientRect().top : 0;
    replacePart(document.querySelector("header"), page.querySelector("header"));
    for (const fresh of page.querySelectorAll("main > section")) replacePart(document.getElementById(fresh.id), fresh);
    if (seen) {
      const now = document.getElementById(seen.id).getBoundingClientRect().top;
      window.scrollBy({ top: now - before, behavior: "instant" });
    }
  }

  async function look() {
    try {
      const headers = tag ? { "If-None-Match": tag } : {};
      const answer = await fetch("./", { headers, cache: "no-store" });
      if (answer.status === 200) {
        show(await answer.text());
        tag = answer.headers.get("ETag");
      }
      say("This page follows the run.");
    } catch {
      say("gvm-ray report no longer answers: this is the page as it was last.");
    }
    setTimeout(look, everyMs);
  }

  setTimeout(look, everyMs);
})();
