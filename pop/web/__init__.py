"""The dashboard: a process beside the daemon that reads the files of a root and gives orders by the same files.

| module   | what it does                                                                         |
|----------|--------------------------------------------------------------------------------------|
| keys     | links with a token, of which only hashes are kept                                     |
| guard    | what stands before every request: host, token, origin, limits, headers               |
| render   | templates, and how numbers and times read                                            |
| live     | fragments of pages as server-sent events, rendered once for all who look             |
| pages    | one module per page: a router, and a source where the page is live                   |
| app      | all of it put together                                                               |
| server   | the process: a listening socket, uvicorn, the end                                    |
"""
