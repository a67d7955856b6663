"""One self-contained page of a run, or of two: what was learned and what not to believe, with figures and the commands behind them."""

from ppvae.analysis.report.judgement import Judgement, judge
from ppvae.analysis.report.of_run import report
from ppvae.analysis.report.of_two import compare_report
from ppvae.analysis.report.paired import RunComparison, compare_runs

__all__ = ["Judgement", "RunComparison", "compare_report", "compare_runs", "judge", "report"]
