"""The dashboard: a process beside the daemon that reads the files of a root and gives orders by the same files.

| module   | what it does                                                                         |
|----------|--------------------------------------------------------------------------------------|
| keys     | links with a token, of which only hashes are kept                                     |
| guard    | what stands before every request: host, token, origin, limits, headers               |
| render   | templates, and how numbers and times read                                            |
| shapes   | what the API takes and answers                                                       |
| figures  | what the board tells beside the runs                                                 |
| live     | fragments of pages as server-sent events, rendered once for all who look             |
| site     | what all of it works with: the root, its index, figures and streams                  |
| reading  | files of the root, bounded, whatever somebody wrote there by hand                    |
| api      | the API: one module per part                                                         |
| pages    | one module per page: a router, and a source where the page is live                   |
| app      | all of it put together                                                               |
| server   | the process: a listening socket, uvicorn, the end                                    |
"""
