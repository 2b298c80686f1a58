"""The pages: one module each, with a `router`; `pop.web.app.PAGES` lists them."""
