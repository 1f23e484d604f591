# SPDX-License-Identifier: GPL-2.0-or-later
"""Fast twins: what mm/ and khugepaged/ do page by page, done for a whole run of pages at once.

A twin has its function's signature and leaves behind the same; where a page is not plain it calls
the function. Machine.path() takes it where no scheduler watches steps.
"""
