//! Aligned columns, for lists and for single objects.

use std::fmt;

/// Rows under headings, or pairs of a name and a value. Columns are as wide as their widest cell.
#[derive(Debug)]
pub struct Table {
    rows: Vec<Vec<String>>,
    indent: usize,
}

impl Table {
    /// A table with these headings.
    pub fn new(headings: &[&str]) -> Self {
        let headings = headings.iter().map(|heading| (*heading).to_owned()).collect();
        Self { rows: vec![headings], indent: 0 }
    }

    /// A list of names and values.
    pub fn pairs() -> Self {
        Self { rows: Vec::new(), indent: 2 }
    }

    pub fn row<const N: usize>(&mut self, cells: [String; N]) {
        self.rows.push(cells.into());
    }

    /// A name and its value; without a value it is left out.
    pub fn pair(&mut self, name: &str, value: Option<impl Into<String>>) {
        if let Some(value) = value {
            self.row([name.to_owned(), value.into()]);
        }
    }

    fn width(&self, column: usize) -> usize {
        let cells = self.rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let widths: Vec<_> = (0..columns).map(|column| self.width(column)).collect();
        for row in &self.rows {
            let mut line = " ".repeat(self.indent);
            for (cell, width) in row.iter().zip(&widths) {
                line += &format!("{cell:<width$}  ");
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_lines_do_not_end_in_spaces() {
        let mut table = Table::new(&["ID", "NAME"]);
        table.row(["a-long-id".into(), "é".into()]);
        table.row(["b".into(), String::new()]);
        assert_eq!(table.to_string(), "ID         NAME\na-long-id  é\nb\n");
        let mut pairs = Table::pairs();
        pairs.pair("status", Some("running"));
        pairs.pair("error", None::<String>);
        pairs.pair("id", Some("x"));
        assert_eq!(pairs.to_string(), "  status  running\n  id      x\n");
    }
}
