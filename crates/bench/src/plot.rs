//! Records as pictures: a row for each case, its time against the floor on a logarithmic axis.
//!
//! Plain SVG that a browser shows in light and dark: colours follow the reader's scheme.

use crate::{Outcome, PREDICTED_FOR, Record, Row};

/// Pixels: of a row, of what stands left of the axis, of the axis, of what stands right of it, above and below.
const ROW: f64 = 22.0;
const LABELS: f64 = 500.0;
const AXIS: f64 = 460.0;
const NUMBERS: f64 = 150.0;
const TOP: f64 = 70.0;
const BOTTOM: f64 = 40.0;

const STYLE: &str = "\
text{font:12px system-ui,sans-serif;fill:#1f2328}\
.title{font-size:15px;font-weight:600}.small{fill:#59636e}.end{text-anchor:end}.middle{text-anchor:middle}\
.grid{stroke:#d1d9e0;stroke-width:1}.gap{stroke:#9198a1;stroke-width:2}\
.floor{stroke:#1f2328;stroke-width:2}.time{fill:#0969da}.predicted{fill:none;stroke:#0969da;stroke-width:2}\
@media(prefers-color-scheme:dark){text{fill:#f0f6fc}.small{fill:#9198a1}.grid{stroke:#3d444d}.gap{stroke:#656c76}\
.floor{stroke:#f0f6fc}.time{fill:#4493f8}.predicted{stroke:#4493f8}}";

/// An SVG for each family that has a case with a time, by the family's name.
pub fn plot(record: &Record) -> Vec<(String, String)> {
    let mut families: Vec<&str> = Vec::new();
    for row in record.cases.iter().filter(|row| row.seconds().is_some()) {
        if !families.contains(&row.family.as_str()) {
            families.push(&row.family);
        }
    }
    families.into_iter().map(|family| (family.to_string(), picture(record, family))).collect()
}

/// A logarithmic axis.
struct Axis {
    /// Powers of ten at both ends.
    first: i32,
    last: i32,
}

impl Axis {
    /// From the power of ten below all numbers to the one above.
    fn around(numbers: impl Iterator<Item = f64> + Clone) -> Self {
        let least = numbers.clone().filter(|n| *n > 0.0).fold(f64::INFINITY, f64::min);
        let greatest = numbers.fold(0.0, f64::max);
        if !(least.is_finite() && greatest.is_finite()) {
            return Self { first: 0, last: 1 };
        }
        let first = least.log10().floor() as i32;
        Self { first, last: (greatest.log10().ceil() as i32).max(first + 1) }
    }

    fn x(&self, number: f64) -> f64 {
        let share = (number.log10() - f64::from(self.first)) / f64::from(self.last - self.first);
        LABELS + AXIS * share.clamp(0.0, 1.0)
    }
}

fn picture(record: &Record, family: &str) -> String {
    let rows: Vec<&Row> = record.cases.iter().filter(|row| row.family == family && row.seconds().is_some()).collect();
    let micros = |row: &Row| [record.floor(row) * 1e6, row.seconds().unwrap_or(0.0) * 1e6];
    let axis = Axis::around(rows.iter().flat_map(|row| micros(row)));
    let bottom = TOP + ROW * rows.len() as f64;
    let (width, height) = (LABELS + AXIS + NUMBERS, bottom + BOTTOM);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" height=\"{height}\" role=\"img\">\n<style>{STYLE}</style>\n"
    );
    let mut add = |line: String| {
        svg.push_str(&line);
        svg.push('\n');
    };
    let what = if record.device.emulated { "predicted time" } else { "time" };
    add(text(10.0, 24.0, "title", &format!("{family}: {what} against the floor")));
    add(text(10.0, 44.0, "small", &subtitle(record)));
    for power in axis.first..=axis.last {
        let number = 10_f64.powi(power);
        let x = axis.x(number);
        add(format!("<line class=\"grid\" x1=\"{x:.1}\" y1=\"{TOP}\" x2=\"{x:.1}\" y2=\"{bottom}\"/>"));
        add(text(x, bottom + 18.0, "small middle", &format!("{number} µs")));
    }
    for (i, row) in rows.iter().enumerate() {
        let y = TOP + ROW * (i as f64 + 0.5);
        let [floor, time] = micros(row);
        let (from, to) = (axis.x(floor), axis.x(time));
        add(text(LABELS - 10.0, y + 4.0, "end", &row.name));
        add(format!("<line class=\"gap\" x1=\"{from:.1}\" y1=\"{y:.1}\" x2=\"{to:.1}\" y2=\"{y:.1}\"/>"));
        let (above, below) = (y - 6.0, y + 6.0);
        add(format!("<line class=\"floor\" x1=\"{from:.1}\" y1=\"{above:.1}\" x2=\"{from:.1}\" y2=\"{below:.1}\"/>"));
        let class = if matches!(row.outcome, Outcome::Timed(_)) { "time" } else { "predicted" };
        add(format!("<circle class=\"{class}\" cx=\"{to:.1}\" cy=\"{y:.1}\" r=\"4.5\"/>"));
        let share = record.fraction(row).map_or(String::new(), |share| format!(", {:.0} %", 100.0 * share));
        add(text(LABELS + AXIS + 10.0, y + 4.0, "", &format!("{} µs{share}", digits(time))));
    }
    svg.push_str("</svg>\n");
    svg
}

/// Where the times are from, and what the marks are.
fn subtitle(record: &Record) -> String {
    let at = format!("{}, {}, revision {}", record.device.name, record.date, record.commit);
    match record.device.emulated {
        true => format!("{at}. Ring: predicted from counters for {PREDICTED_FOR}, nothing was timed. Bar: floor"),
        false => format!("{at}. Dot: median. Bar: floor, by this run's copy and products"),
    }
}

/// Three digits that count.
fn digits(number: f64) -> String {
    match number {
        100.0.. => format!("{number:.0}"),
        10.0.. => format!("{number:.1}"),
        _ => format!("{number:.2}"),
    }
}

fn text(x: f64, y: f64, class: &str, words: &str) -> String {
    format!("<text class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\">{}</text>", escaped(words))
}

/// Text as XML bears it.
fn escaped(words: &str) -> String {
    let mut out = String::with_capacity(words.len());
    for c in words.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            // XML 1.0 has no place for these, escaped or not.
            c if c.is_control() => out.push(' '),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_axis_has_all_numbers_between_powers_of_ten() {
        let axis = Axis::around([3.0, 0.2, 45.0].into_iter());
        assert_eq!((axis.first, axis.last), (-1, 2));
        assert_eq!((axis.x(0.1), axis.x(100.0)), (LABELS, LABELS + AXIS));
        let one = Axis::around([1.0].into_iter());
        assert_eq!((one.first, one.last), (0, 1), "not of no length");
        let none = Axis::around([0.0].into_iter());
        assert!(none.x(0.5).is_finite());
    }

    #[test]
    fn names_of_devices_cannot_break_the_picture() {
        assert_eq!(escaped("<a & \"b\">\u{1}"), "&lt;a &amp; &quot;b&quot;&gt; ");
    }
}
