// Where the page begins: what the address needs is asked for, then the rest of the code is taken in.

import * as route from "./base/route";
import { prefetch } from "./pages/prefetch";

const selection = prefetch(route.current());
const { start } = await import("./shell");
start(selection);
