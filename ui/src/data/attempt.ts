import type { RunDetail } from "./api";

const PROVISIONAL = "tensormeter.run.attempt.provisional";

/** Whether no server has confirmed the number of the latest attempt. Attempts on other machines may then have the same number. */
export function isProvisional({ processes, attempt }: RunDetail): boolean {
  return processes.some((process) => process.attempt === attempt && process.resource[PROVISIONAL] === true);
}

/** The number of the latest attempt as text. */
export function attemptText(run: RunDetail): string {
  return isProvisional(run) ? `${run.attempt}, provisional: attempts on other machines may have the same number` : String(run.attempt);
}
