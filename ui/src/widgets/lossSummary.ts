// Describes lost data in sentences. The reasons are the keys of `losses` in the API.

import * as format from "../base/format";
import type * as api from "../data/api";

/** For each reason: the counted item in singular and plural, and the cause. */
const REASONS: Record<string, [string, string, string]> = {
  ring_full: ["point", "points", "the ring buffer was full; raise buffer_bytes or log less often"],
  unsupported_value: ["value", "values", "unsupported type or name; warnings of the training process name up to 1,000 keys"],
  too_many_names: ["point", "points", "too many different metrics were logged"],
  too_many_layouts: ["point", "points", "too many different metrics were logged"],
  device_unfinished: ["point", "points", "not computed by the device before the process ended"],
  media_full: ["item", "items", "too many media items were waiting to be sent"],
  text_too_large: ["text", "texts", "larger than 4 MiB"],
  table_too_large: ["table", "tables", "larger than 12 MiB or 700,000 cells, or with too many images"],
  image_too_large: ["image", "images", "larger than 16 MiB"],
  media_too_large: ["item", "items", "audio or video larger than 16 MiB, or HTML or figures larger than 4 MiB"],
  none_value: ["value", "values", "None was logged"],
  config_too_large: ["configuration value", "configuration values", "the configuration exceeded 1 MiB, so its largest values were dropped"],
  media_damaged: ["item", "items", "media could not be read or encoded"],
  spool_full_system: ["point", "points", "system metrics were evicted because the spool was full"],
  spool_full_media: ["item", "items", "media were evicted because the spool was full"],
  spool_full_scalars: ["point", "points", "the history was thinned because the spool was full"],
  spool_full_logs: ["log record", "log records", "console output and logs were evicted because the spool was full"],
  console_full: ["line", "lines", "the program printed faster than its output is recorded"],
  console_limit: ["line", "lines", "the program had printed more than is recorded (TENSORMETER_CONSOLE_MAX_BYTES)"],
  damaged: ["point", "points", "unreadable because of damage on disk"],
  refused: ["item", "items", "refused by the server; warnings of the training process give the reason"],
};

/** Describe each reason in a sentence, the largest count first. */
export function lossSentences(losses: api.RunDetail["losses"] | undefined): string[] {
  return Object.entries(losses ?? {})
    .filter(([, n]) => n > 0)
    .sort(([, a], [, b]) => b - a)
    .map(([reason, n]) => {
      const [singular, plural, why] = REASONS[reason] ?? ["item", "items", reason.replaceAll("_", " ")];
      return `${format.count(n)} ${n === 1 ? singular : plural}: ${why}.`;
    });
}
