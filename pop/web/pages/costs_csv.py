"""What the page of costs shows, all rows of it, as comma-separated values."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response

from pop.costsheet import csv_of
from pop.web.costbook import add_up, book_of
from pop.web.pages.costs import Wish, order_of, wish_of
from pop.web.site import Site

router = APIRouter()
CSV = "text/csv; charset=utf-8"


@router.get("/costs.csv")
def costs_csv(request: Request, wish: Annotated[Wish, Depends(wish_of)]) -> Response:
    site: Site = request.app.state.site
    found = add_up(book_of(site.root, wish.by), wish.since, wish.until, wish.by, wish.pipeline)
    text = csv_of(wish.by, list(order_of(wish, found.rows).items()))
    headers = {"content-disposition": f'attachment; filename="costs-by-{wish.by}.csv"'}
    return Response(text.encode("utf-8", "replace"), media_type=CSV, headers=headers)
