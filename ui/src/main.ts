// Where the page begins: what the address needs is asked for, then the rest of the code is taken in.

import * as route from "./route";
import { askAhead } from "./views/ahead";

const session = askAhead(route.current());
const { start } = await import("./page");
start(session);
