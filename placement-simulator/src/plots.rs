//! What is drawn: p99 slowdown over load, over the interval of reports, over the number of nodes.

use crate::{
    catalogue,
    contenders::{BLIND, EVENKEEL, LEAST_CONNECTIONS, LEAST_CPU, PERFECT},
    many::Results,
    statistics::Interval,
};
use plotters::prelude::*;
use std::path::Path;

/// Who is drawn: the others are in the tables.
const DRAWN: [&str; 10] = [
    PERFECT,
    EVENKEEL,
    BLIND,
    "central-fifo-strongest-first",
    LEAST_CONNECTIONS,
    "p2c-by-capacity",
    "peak-ewma",
    "prequal-0.6",
    "weighted-round-robin",
    LEAST_CPU,
];
const COLOURS: [RGBColor; 10] = [
    RGBColor(120, 120, 120),
    RGBColor(200, 0, 0),
    RGBColor(240, 140, 120),
    RGBColor(0, 90, 180),
    RGBColor(0, 140, 70),
    RGBColor(140, 80, 180),
    RGBColor(190, 140, 0),
    RGBColor(0, 160, 170),
    RGBColor(110, 70, 40),
    RGBColor(0, 0, 0),
];
const SIZE: (u32, u32) = (860, 520);

/// A point of a line: where, its mean and its confidence interval.
type Point = (f64, Interval);

struct Plot {
    file: &'static str,
    title: &'static str,
    across: &'static str,
    logarithmic: bool,
    /// Where each setting is.
    settings: Vec<(f64, String)>,
}

fn plots() -> Vec<Plot> {
    let load = |load: &u32| {
        let name = if *load == 85 { catalogue::GOALS.to_owned() } else { format!("load-0.{load}") };
        (f64::from(*load) / 100.0, name)
    };
    let reports = |base: &'static str| {
        let usual = if base == "reports" { catalogue::GOALS } else { catalogue::HOGS };
        catalogue::REPORTS_MS.map(|ms| {
            let name = if ms == 500 { usual.to_owned() } else { catalogue::report_name(base, ms) };
            (f64::from(ms) / 1e3, name)
        })
    };
    let nodes = |nodes: usize| {
        (nodes as f64, if nodes == 100 { catalogue::GOALS.to_owned() } else { format!("nodes-{nodes}") })
    };
    vec![
        Plot {
            file: "load.svg",
            title: "p99 slowdown over load",
            across: "load",
            logarithmic: false,
            settings: catalogue::LOADS.iter().map(load).collect(),
        },
        Plot {
            file: "reports.svg",
            title: "p99 slowdown over the interval of reports",
            across: "seconds between reports",
            logarithmic: true,
            settings: reports("reports").to_vec(),
        },
        Plot {
            file: "hogs.svg",
            title: "p99 slowdown over the interval of reports, hogs on half of the nodes",
            across: "seconds between reports",
            logarithmic: true,
            settings: reports("hogs-reports").to_vec(),
        },
        Plot {
            file: "nodes.svg",
            title: "p99 slowdown over the number of nodes",
            across: "nodes",
            logarithmic: true,
            settings: catalogue::NODES.map(nodes).to_vec(),
        },
    ]
}

impl Plot {
    fn line(&self, results: &Results, name: &'static str) -> Vec<Point> {
        let point = |(at, setting): &(f64, String)| {
            let figures = results.get(&(setting.clone(), name))?;
            let p99s: Vec<f64> = figures.iter().map(|figures| figures.p99).collect();
            Some((*at, Interval::of(&p99s)))
        };
        self.settings.iter().filter_map(point).collect()
    }

    fn draw(&self, results: &Results, to: &Path) -> Result<bool, Box<dyn std::error::Error>> {
        let lines: Vec<_> = DRAWN.iter().map(|name| (*name, self.line(results, name))).collect();
        // Two points are no line.
        if lines.iter().all(|line| line.1.len() < 3) {
            return Ok(false);
        }
        let highs = lines.iter().flat_map(|line| &line.1).map(|point| point.1.high);
        let most = highs.fold(10.0, f64::max) * 1.3;
        let (first, last) = (self.settings[0].0, self.settings[self.settings.len() - 1].0);
        let area = SVGBackend::new(to, SIZE).into_drawing_area();
        area.fill(&WHITE)?;
        let mut builder = ChartBuilder::on(&area);
        builder
            .caption(self.title, ("sans-serif", 20))
            .margin(12)
            .x_label_area_size(40)
            .y_label_area_size(60);
        let up = (1.0..most).log_scale();
        // The two axes have different types, so the rest is said twice.
        macro_rules! lines {
            ($chart:ident) => {
                $chart
                    .configure_mesh()
                    .light_line_style(WHITE)
                    .x_desc(self.across)
                    .y_desc("slowdown, 99 of 100 tasks are below")
                    .draw()?;
                for ((name, points), colour) in lines.iter().zip(COLOURS) {
                    if points.is_empty() {
                        continue;
                    }
                    let width = if *name == EVENKEEL { 3 } else { 1 };
                    let style = colour.stroke_width(width);
                    let means = points.iter().map(|point| (point.0, point.1.mean));
                    $chart
                        .draw_series(LineSeries::new(means.clone(), style))?
                        .label(*name)
                        .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], style));
                    let bounds = points.iter().map(|(at, p99)| {
                        PathElement::new([(*at, p99.low), (*at, p99.high)], colour.stroke_width(1))
                    });
                    $chart.draw_series(bounds)?;
                    $chart.draw_series(means.map(|point| Circle::new(point, 2, colour.filled())))?;
                }
                $chart
                    .configure_series_labels()
                    .position(SeriesLabelPosition::UpperLeft)
                    .background_style(WHITE.mix(0.85))
                    .border_style(RGBColor(200, 200, 200))
                    .draw()?;
            };
        }
        if self.logarithmic {
            let mut chart = builder.build_cartesian_2d((first..last * 1.0001).log_scale(), up)?;
            lines!(chart);
        } else {
            let mut chart = builder.build_cartesian_2d(first..last, up)?;
            lines!(chart);
        }
        area.present()?;
        Ok(true)
    }
}

/// Draws all plots whose settings were run into a folder; gives the names of their files.
///
/// # Errors
/// If a file cannot be written.
pub fn draw(results: &Results, folder: &Path) -> Result<Vec<&'static str>, Box<dyn std::error::Error>> {
    let mut drawn = Vec::new();
    for plot in plots() {
        if plot.draw(results, &folder.join(plot.file))? {
            drawn.push(plot.file);
        }
    }
    Ok(drawn)
}
