// The content of a media card: the elements that show the body of an event.

import { fill, h } from "../base/dom";
import * as format from "../base/format";
import type { Kind } from "../data/media";
import { htmlFrame } from "./htmlFrame";
import { type Picture, picture } from "./lightbox";
import { MediaTable } from "./mediaTable";
import { figureView } from "./figureView";
import { plotlyFigure } from "./plotlyFigure";
import { chartFigure, readChart } from "./tableChart";

export interface MediaContent {
  element: HTMLElement;
  /** Facts about the item, such as its caption. */
  words: string[];
  /** Whether the item is a table with a chart. */
  hasChart?: boolean;
}

/** Load an image, a video or an audio clip, and return its address. */
export type Loader = (digest: string) => Promise<string>;

type Body = Record<string, unknown>;

/** Make the content. `showsRows` selects the rows of a table that has a chart. */
export async function mediaContent(kind: Kind, key: string, body: Body, load: Loader, showsRows: boolean): Promise<MediaContent> {
  const caption = String(body.caption ?? "");
  const size = body.width ? `${body.width} × ${body.height}` : "";
  switch (kind) {
    case "image":
      return { element: await imageOf(body, caption || key, load), words: [caption, size] };
    case "images":
      return grid(Array.isArray(body.images) ? (body.images as Body[]) : [], key, load);
    case "video":
      return { element: await video(body, caption || key, load), words: [caption, size, body.frames ? `${body.frames} frames` : ""] };
    case "audio":
      return { element: await audio(body, caption || key, load), words: [caption, body.sample_rate ? `${format.number(Number(body.sample_rate))} Hz` : ""] };
    case "figure":
      return { element: plotlyFigure(String(body.figure ?? ""), key), words: [caption] };
    case "html":
      return { element: htmlFrame(String(body.html ?? ""), caption || key), words: [caption] };
    case "text":
      return { element: h("pre", { class: "text", tabindex: 0 }, String(body.text ?? "")), words: [] };
    default:
      return table(key, body, load, showsRows);
  }
}

function table(key: string, body: Body, load: Loader, showsRows: boolean): MediaContent {
  const chart = readChart(body);
  const hasChart = chart !== null;
  if (!chart || showsRows) return { element: new MediaTable(body.columns, body.rows, load).element, words: [], hasChart };
  const words: string[] = [];
  const figure = chartFigure(chart, body, words);
  const hasValues = figure.traces.some(({ x, y }) => x.length && y.length);
  const content = hasValues ? figureView({ ...figure, name: `${chart.title || key}, ${figure.name}` }, words) : [h("p", { class: "muted" }, "This chart has no values.")];
  return { element: h("div", { class: "plotly" }, chart.title ? h("h4", {}, chart.title) : null, ...content), words, hasChart };
}

function digestOf(body: Body): string | undefined {
  return (body.digest ?? (body.data as { digest?: unknown } | null)?.digest) as string | undefined;
}

const unsupported = (what: string) => h("p", { class: "status" }, `This ${what} format is not supported.`);

async function imageOf(body: Body, caption: string, load: Loader): Promise<HTMLElement> {
  const digest = digestOf(body);
  if (!digest) return unsupported("image");
  const image = h("img", { alt: caption });
  image.src = await load(digest);
  return picture(image, caption);
}

/** Images that were logged together. Each opens large, and leads to the others. */
function grid(bodies: Body[], key: string, load: Loader): MediaContent {
  const pictures: Picture[] = [];
  const element = h("div", { class: "images", role: "group", "aria-label": `${key}: ${bodies.length} images` });
  for (const [position, body] of bodies.entries()) {
    const caption = String(body.caption || "");
    const image = h("img", { alt: caption || `image ${position + 1}`, loading: "lazy" });
    pictures.push({ image, caption });
    const opener = picture(image, caption || `image ${position + 1}`, pictures);
    element.append(h("figure", {}, opener, caption ? h("figcaption", { title: caption }, caption) : null));
    const digest = digestOf(body);
    if (!digest) fill(opener, "not supported");
    else
      load(digest).then(
        (address) => {
          image.src = address;
        },
        () => opener.replaceWith(h("span", { class: "status" }, "not available")),
      );
  }
  return { element, words: [`${bodies.length} images`] };
}

async function video(body: Body, caption: string, load: Loader): Promise<HTMLElement> {
  if (String(body.content_type).startsWith("image/")) return imageOf(body, caption, load);
  const digest = digestOf(body);
  if (!digest) return unsupported("video");
  const player = h("video", { controls: true, loop: true, playsinline: true, preload: "metadata", "aria-label": caption });
  player.src = await load(digest);
  return player;
}

async function audio(body: Body, caption: string, load: Loader): Promise<HTMLElement> {
  const digest = digestOf(body);
  if (!digest) return unsupported("audio");
  const player = h("audio", { controls: true, preload: "metadata", "aria-label": caption });
  player.src = await load(digest);
  return player;
}
