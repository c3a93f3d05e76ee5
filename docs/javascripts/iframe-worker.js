// Search without a server. A page that is opened as a file may not start a worker; the search's worker then runs in a
// frame of the page, which passes messages on as a worker does.
if (location.protocol === "file:") {
  window.Worker = window.IFrameWorker = class extends EventTarget {
    constructor(url) {
      super();
      this.frame = document.createElement("iframe");
      this.frame.hidden = true;
      this.ready = new Promise((resolve) => {
        const insert = () => {
          document.body.append(this.frame);
          const inside = this.frame.contentWindow;
          inside.postMessage = (data) => this.dispatchEvent(new MessageEvent("message", { data }));
          const script = this.frame.contentDocument.createElement("script");
          script.src = url;
          script.onload = () => resolve(inside);
          script.onerror = () => this.dispatchEvent(new ErrorEvent("error", { filename: String(url) }));
          this.frame.contentDocument.body.append(script);
        };
        document.body ? insert() : addEventListener("DOMContentLoaded", insert);
      });
    }
    postMessage(data) {
      this.ready.then((inside) => inside.dispatchEvent(new inside.MessageEvent("message", { data })));
    }
    terminate() {
      this.frame.remove();
    }
  };
}
